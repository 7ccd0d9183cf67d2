"""Evaluates trained students with numbers, tables and pictures.

    python eval.py accuracy runs/deit_nano-matching-distill-seed0     # Scores a student on its run's held-out images.
    python eval.py table runs --figure gains.png                      # Prints the gains over the baseline by teacher.
    python eval.py agreement runs/...                                 # Compares the student's maps with the teacher's.
    python eval.py view runs/... --out view.html                      # Writes a page that shows where both look.
    python eval.py maps runs/... --figure maps.png                    # Draws the same for one token.
    python eval.py curves runs/... --figure curves.png                # Draws loss and accuracy by epoch.
    python eval.py speed                                              # Times a step of attention transfer.
    python eval.py speed --data my_photos                             # Times the preparation of these images.

This file is for reference. From Python, begin with `load_student(folder) -> ViT`.
"""

import itertools
import math
import re
import sys
import time
from argparse import Namespace
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from model import ViT, ViTConfig, attention_map
from support import data, pictures, runs, tables
from support.arguments import Parser, number_from
from support.errors import UserError, answer_mistakes
from support.files import check_name
from support.processes import Processes, spare_cores
from teachers import find_teacher, fingerprint, load_teacher, student_config
from train import Settings, build_data, build_model, build_teacher, evaluate, mixed_precision
from transfer import AttentionTransfer, StudentAlone, choose_blocks, in_float32, kl, measures


def load_student(folder: str | Path, ema: bool = False) -> ViT:
    """Loads the student of a finished run, in eval mode. With `ema`, it has the moving average of its weights.

    A student that learnt by copying is of no use alone: `train.build_model` joins it with its teacher.
    """
    config = runs.read_config(folder)
    path = Path(folder, "student_ema.safetensors" if ema else "student.safetensors")
    runs.read_result(folder)  # This raises if the run is not finished.
    if not path.is_file():
        raise UserError(
            f"{folder} kept no moving average of its weights; leave out --ema, or train it again with --fresh and --ema"
        )
    check_name(path)
    try:
        student = ViT(ViTConfig(**config["student"]))
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise UserError(f"{path} does not hold the student of its config.json; train it again with --fresh") from error
    return student.eval()


def open_run(folder: str, args: Namespace, with_teacher: bool = False) -> tuple:
    """Opens a run: returns its settings, as changed by the command line, its student, and its teacher or None."""
    config = runs.read_config(folder)
    known = config["made_of"].get("teacher_weights")
    if config["settings"]["method"] == "copy":
        runs.read_true_config(folder)  # In an exercise, such a student reads with maps that are not its teacher's.
    student = load_student(folder, args.ema).to(args.device)
    given = {name: value for name, value in vars(args).items() if value and name in ("weights", "data_root", "amp")}
    settings, teacher = replace(runs.read_settings(folder, Settings), **given), None
    if with_teacher or settings.method == "copy":
        teacher = build_teacher(settings).to(args.device)
        if known and fingerprint(teacher) != known:
            raise UserError(
                f"{folder} was trained with other weights of {settings.teacher}; name their file with --weights"
            )
    return settings, student, teacher


# ---- Accuracy, on the run's own held-out images or on others ---------------------------------------------------------

# These data sets consist of class folders. Their archives unpack to these paths below --data-root.
FOLDERS = {
    "imagenet": "imagenet/val",
    "imagenet_a": "imagenet-a",  # It has natural images of 200 classes that models often mistake (arXiv 1907.07174).
    "imagenet_r": "imagenet-r",  # It has renditions of 200 classes (arXiv 2006.16241).
    "imagenet_sketch": "sketch",  # arXiv 1905.13549 describes it.
    "imagenet_v2": "imagenetv2-matched-frequency-format-val",  # arXiv 1902.10811 describes it.
}
ROW = "{:50} {:20} {top1:6.2f} {top5:6.2f} {n:7d} {images_per_s:8.0f}"


def accuracy(args: Namespace) -> None:
    """Prints a row with top-1 and top-5 accuracy for each run and data set."""
    print(f"{'run':50} {'data':20}  top-1  top-5       n images/s")
    for folder in map(Path, args.runs):
        tables.result_of(folder)  # This refuses a run that a table would skip.
        student = teacher = model = None  # This frees the models of the previous run.
        settings, student, teacher = open_run(folder, args)
        model, known = build_model(settings, student, teacher), runs.read_config(folder)["classes"]
        autocast, _ = mixed_precision(settings.amp, args.device)  # The run's own precision reproduces its accuracy.
        batch_size = args.batch_size or min(256, settings.batch_size)
        workers = min(settings.workers, spare_cores()) if args.workers is None else args.workers
        names = [data.one_name(name, sorted({*data.DATASETS, *FOLDERS})) for name in args.data or ()]
        for name in names or [settings.data]:
            dataset, classes = evaluation_set(settings, known, name)
            images = data.Loader(dataset, workers, args.device)
            found = evaluate(model, images, batch_size, args.processes, classes, autocast)
            title = Path(name).name + (f" ({len(classes)}/{len(known)})" if len(classes) < len(known) else "")
            print(ROW.format(folder.name, title, **found), warning(folder, settings, dataset))


CHANGED = " (the run's images have changed since; some may be training images)"


def warning(folder: Path, settings: Settings, scored: data.Images) -> str:
    """Returns a warning if the student was trained on some of the scored images, or if this is unknown."""
    if settings.data in data.MADE:
        # Their held-out images are published. Only a folder of their own files can hold their training images.
        files = data.SOURCES[settings.data].files.partition("{")[0] if settings.data in data.SOURCES else ""
        if not files or not scored.split.root.startswith(str(Path(settings.data_root, files))):
            return ""
    try:
        now = build_data(settings)
    except UserError:
        return " (the training images are gone, and some may be among these)"
    made_of = runs.read_config(folder)["made_of"]
    changed = any(made_of[name] != value for name, value in data.fingerprints(now).items())
    count = data.seen_before(scored.split, now.train.split)
    return f" ({count} of them are training images)" * (count > 0) + CHANGED * changed


def evaluation_set(settings: Settings, known: list, name: str) -> tuple[Dataset, list]:
    """Opens a data set as the run would see it. Returns it, with the index of each of its classes in `known`.

    `known` lists the student's classes. ImageNet-A and -R have 200 of the 1,000: the student chooses only among these.
    """
    if name in (settings.data, "matching", *data.SOURCES):
        _, dataset, classes = build_data(replace(settings, data=name, train_images=None))
    else:
        images, classes = data.class_folders(class_folder(name, settings.data_root))
        normalisation = find_teacher(settings.teacher).normalisation
        dataset = data.Images(images, normalisation, data.plain_view(name, settings.img_size))
    if name == "imagenet_v2":  # Its folders are numbered in the order of the sorted WordNet ids.
        numbers = {str(number): word for number, word in enumerate(known)}
        classes = [numbers.get(word, word) for word in classes]
    strange = [word for word in classes if word not in known]
    if strange:
        problem = f"{len(strange)} of the {len(classes)} classes of {name}, such as '{strange[0]}', are not among those"
        raise UserError(f"{problem} that the student learnt, such as '{known[0]}'; choose data with the same classes")
    return dataset, [known.index(word) for word in classes]


def class_folder(name: str, root: str) -> Path:
    """Finds the class folders of a data set below the root, or of a folder of images (in its val/ if it has one)."""
    if name in FOLDERS:
        place = Path(root, FOLDERS[name])
        if not place.is_dir():
            raise UserError(f"{name} is not there; put its class folders into {place}, or set --data-root")
        return place
    folder = data.find_folder(name, root)
    splits = data.splits_of(folder)
    return splits[1] if splits else folder


# ---- Where both look -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def both_maps(settings: Settings, student: ViT, teacher: ViT, images: Tensor) -> tuple[list, list]:
    """Returns the maps of teacher and student by block, each (B, H, N, N) over the student's tokens.

    The student's maps are those that it reads with: in a run that copies, these are the teacher's. Both models compute
    in the run's precision, and the maps are computed from their q and k in float32.
    """
    handed, seen = None, []
    autocast, _ = mixed_precision(settings.amp, images.device)
    with autocast():
        if settings.method == "copy":
            model = build_model(settings, student, teacher)
            handed = model.handed(model.teacher_targets(images))
        student(images, handed=handed, seen=seen)
        theirs = AttentionTransfer(student, teacher, "copy").teacher_routings(images)
    both = list(theirs.values()), [attended.routing for attended in seen]
    return tuple([attention_map(in_float32(routing)) for routing in routings] for routings in both)


def maps(args: Namespace) -> None:
    """Draws where one token looks, in every block and head of teacher and student."""
    settings, student, teacher = open_run(args.run, args, with_teacher=True)
    images, picture = chosen_image(args, settings)
    config = student.config
    patch = chosen_patch(args.patch, config)
    token = config.prefix + patch[0] * config.grid + patch[1] if patch else 0
    sides, both = {}, both_maps(settings, student, teacher, images)
    for title, side in zip(titles_of(args, settings), both, strict=True):
        rows = torch.cat(side)[:, :, token, config.prefix :]  # (blocks, heads, patches)
        sides[title] = rows.unflatten(-1, (-1, config.grid)).float().cpu()
    pictures.draw_maps(picture, patch, sides, args.figure)


def titles_of(args: Namespace, settings: Settings) -> list:
    """Names the sides of a picture: the teacher, and the student if there is one."""
    return [f"teacher: {runs.teacher_title(settings)}"] + ([f"student: {Path(args.run).name}"] if args.run else [])


def chosen_image(args: Namespace, settings: Settings) -> tuple[Tensor, Tensor]:
    """Returns the image of --image, or the first held-out image: as a batch for models, and with values from 0 to 1."""
    normalisation = find_teacher(settings.teacher).normalisation
    if args.image:
        view = data.plain_view(settings.data, settings.img_size)
        image = data.to_floats(view(data.read_image(args.image)), normalisation)
    else:
        image = build_data(settings).val[0][0]
    mean, std = torch.tensor(normalisation).view(2, 3, 1, 1)
    return image[None].to(args.device), (image * std + mean).clamp(0, 1)


def chosen_patch(text: str | None, config: ViTConfig) -> tuple | None:
    """Returns the (row, column) of the chosen patch, or None for the class token.

    By default this is the class token, or the middle patch if there is no class token.
    """
    if text is None:
        return None if config.class_token else (config.grid // 2, config.grid // 2)
    patch = tuple(map(int, re.findall(r"\d+", text)))
    if not re.fullmatch(r"\d+,\d+", text) or max(patch) >= config.grid:
        last = config.grid - 1
        raise UserError(f"--patch {text} is not the ROW,COLUMN of a patch; these go from 0,0 to {last},{last}")
    return patch


def view(args: Namespace) -> None:
    """Writes a page for the browser: where each token looks, and which tokens look at it, in every block and head."""
    if bool(args.run) == bool(args.teacher):
        raise UserError("name a run, or a teacher alone with --teacher")
    if args.run:
        settings, student, teacher = open_run(args.run, args, with_teacher=True)
    elif args.ema:
        raise UserError("--ema is the average that a run kept; a teacher has none, so leave it out")
    else:
        entry = find_teacher(args.teacher)
        if entry.url and not args.image:
            raise UserError("there is no image to look at; name one with --image")
        settings = Settings(args.teacher, data="matching", weights=args.weights, img_size=entry.img_size)
        student, teacher = None, build_teacher(settings).to(args.device)
    images, picture = chosen_image(args, settings)
    config = teacher.config if student is None else student.config
    blocks = choose_blocks(args.blocks, config.depth)
    titles = titles_of(args, settings)
    rows = len(titles) * (config.heads + 1) * (config.prefix + config.grid**2)  # The mean over heads is a map, too.
    a_row = config.grid**2 + 4 * (len(TOLD) + config.prefix)  # Patches take a byte each, and the rest is in float32.
    pictures.check_page_size(rows * a_row, blocks)

    pages = {}
    sides = both_maps(settings, student, teacher, images) if student else [teacher.attention_maps(images)]
    theirs = torch.tensor(math.nan)  # The teacher is compared with nothing.
    for title, side in zip(titles, sides, strict=True):
        by_head = torch.cat([side[block] for block in blocks]).float().cpu()  # (blocks, H, N, N)
        by_head = torch.cat((by_head, by_head.mean(1, keepdim=True)), 1)
        pages[title] = by_head, told_of(by_head, theirs, config)
        theirs = by_head
    prefix = ["class token"] * config.class_token + [f"register {number}" for number in range(config.registers)]
    pictures.write_page(picture, pages, prefix, blocks, TOLD, args.out)


# The page reports these numbers for a token and its row of a map, in these units.
TOLD = {
    "largest share that it gives to one patch": "%",
    "largest share that one patch gives to it": "%",
    "share on the class token": "%",
    "share on registers": "%",
    "share on itself": "%",
    "mean share that tokens give to it": "%",
    "entropy of its row": "nats",
    "KL from the teacher's row": "nats",
}


@torch.inference_mode()
def told_of(maps: Tensor, theirs: Tensor, config: ViTConfig) -> Tensor:
    """Computes the numbers of TOLD, (..., N, 8), for maps (..., N, N). A number that does not exist is NaN."""
    first = int(config.class_token)
    numbers = (
        maps[..., config.prefix :].amax(-1),
        maps[..., config.prefix :, :].amax(-2),
        maps[..., :first].mean(-1),  # The mean of no numbers is NaN.
        maps[..., first : config.prefix].mean(-1) * config.registers,
        maps.diagonal(dim1=-2, dim2=-1),
        maps.mean(-2),
        torch.special.entr(maps).sum(-1),
        kl(theirs, maps.clamp_min(torch.finfo(maps.dtype).tiny).log()),
    )
    return torch.stack(numbers, -1)


# The measures of transfer.py have these units. The first two compare teacher and student, the others describe each.
UNITS = {
    "kl": "nats",
    "js": "nats",
    "entropy": "nats",
    "distance": "patches",
    "class token": "share",
    "registers": "share",
    "sink": "share",
}


def agreement(args: Namespace) -> None:
    """Prints the measures of transfer.py by block, over the first 64 held-out images; --figure draws them."""
    settings, student, teacher = open_run(args.run, args, with_teacher=True)
    dataset, found = build_data(settings).val, Counter()
    count = min(64, len(dataset))
    batches = data.Loader(dataset, 0, args.device).read(data.in_order(count, 1))
    for image, _ in tqdm(batches, desc="maps", leave=False):
        theirs, ours = map(torch.stack, both_maps(settings, student, teacher, image))
        for name, value in measures(theirs, ours, student.config).items():
            found[name] += value.mean(-1).cpu() / count  # (blocks,) or (2, blocks)

    title = f"{Path(args.run).name} and {runs.teacher_title(settings)}, {count} images"
    title += warning(Path(args.run), settings, dataset)
    print(f"{title}, mean over heads; teacher > student\n")
    lines, panels = [["block", *UNITS]], {}
    for block in range(student.config.depth):
        line = [str(block)]
        for name, unit in UNITS.items():
            values = found[name][..., block].view(-1).tolist()
            line.append(" > ".join(f"{value:.3f}" for value in values))
            for side, value in zip(("teacher", "student") if len(values) > 1 else ["both"], values, strict=True):
                pictures.add_point(panels, f"{name} ({unit})", side, block, value)
        lines.append(line)
    tables.print_aligned(lines)
    if args.figure:
        pictures.draw_lines(panels, "block", args.figure)


# ---- Many runs -------------------------------------------------------------------------------------------------------


def table(args: Namespace) -> None:
    """Prints the gain over the baseline of all finished runs below a folder; --figure draws it, --csv lists runs."""
    results = {}  # This maps each result to its line in the CSV file.
    for path in sorted(Path(args.folder).rglob("config.json")):
        try:
            result = tables.result_of(path.parent)
            if result in results:
                raise UserError(f"{path.parent} has the settings of another run")
            results[result] = tables.line_of(path.parent, result)
        except UserError as error:
            print(f"skipped: {error}")
    found = tables.compare(list(results))
    tables.print_tables(found)
    if args.csv:
        tables.write_csv(list(results.values()), args.csv)
    if args.figure:
        pictures.draw_gains(found, args.figure)


def curves(args: Namespace) -> None:
    """Draws loss and accuracy by epoch."""
    panels = {}
    for folder in args.runs:
        name, weight = Path(folder).name, runs.read_config(folder)["settings"]["weight"]
        for line in runs.read_log(folder):
            epoch, transfer_loss = line["epoch"], line["transfer_loss"]
            pictures.add_point(panels, "classification loss", name, epoch, line["loss"] - weight * transfer_loss)
            pictures.add_point(panels, "transfer loss", name, epoch, transfer_loss)
            if "val_top1" in line:  # Not every epoch ends with a validation.
                pictures.add_point(panels, "top-1, held-out images (%)", name, epoch, line["val_top1"])
    pictures.draw_lines(panels, "epoch", args.figure)


# ---- Speed -----------------------------------------------------------------------------------------------------------


def speed(args: Namespace) -> None:
    """Prints the time that a step of copying or distillation takes, relative to a step without a teacher.

    The variants take turns, and ratios are taken within each round, so that other programs slow all variants. Medians
    are printed. With --data, it prints instead how many images of that data set one process prepares per second.
    """
    device, size = args.device, args.img_size or find_teacher(args.teacher).img_size
    if args.data:
        return feeding(args.data, args.data_root or "data", size, find_teacher(args.teacher).normalisation)
    config, on_cuda = student_config(args.teacher, img_size=size), device.type == "cuda"
    batch, blocks = args.batch_size or (128 if on_cuda else 16), config.depth * 3 // 4
    student, teacher = ViT(config).to(device), load_teacher(args.teacher, "random", size).to(device)
    if args.compile:
        student.compile()
    variants = {
        "baseline": StudentAlone(student),
        "copy": AttentionTransfer(student, teacher, "copy"),
        "distill, fused": AttentionTransfer(student, teacher, "distill", blocks, fused=True),
        "distill, plain": AttentionTransfer(student, teacher, "distill", blocks, fused=False),
    }
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(config.num_classes, (batch,), device=device)
    print(f"{args.teacher} with random weights, {size} px, batch {batch}, distilling {blocks} blocks, on {device}")

    rounds, memory = [], dict.fromkeys(variants, "-")
    for _ in tqdm(range(12), desc="rounds", leave=False):
        seconds = []
        for name, module in variants.items():
            if on_cuda:
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                logits, transfer_loss = module(images)
            (F.cross_entropy(logits.float(), labels) + 3 * transfer_loss).backward()
            student.zero_grad()
            if on_cuda:
                torch.cuda.synchronize(device)  # Without this, Python does not wait for the GPU.
                memory[name] = f"{torch.cuda.max_memory_allocated(device) / 1e6:.0f}"
            seconds.append(time.perf_counter() - start)
        rounds.append(seconds)
    seconds = torch.tensor(rounds[1:])  # The first round is a warm-up.
    ratios = seconds / seconds[:, :1]
    lines = [["", "step, s", "ratio", "peak MB"]]
    for name, step, ratio in zip(variants, seconds.median(0).values, ratios.median(0).values, strict=True):
        lines.append([name, f"{step:.3f}", f"{ratio:.2f}", memory[name]])
    tables.print_aligned(lines)
    print("forward and backward pass, medians over 11 rounds; ratios are taken within each round")


def feeding(names: list[str], root: str, size: int, normalisation: tuple) -> None:
    """Prints how many images of each data set a process reads, decodes and augments per second, with one thread."""
    torch.set_num_threads(1)  # A loader's worker has one thread, too.
    for name in names:
        if name == "matching":
            raise UserError("the images of matching are made before training; name another data set")
        images = data.load_data(data.one_name(name), root, size, normalisation).train
        rates = []
        for seeds in (range(len(images)), [None] * len(images)):  # Without a seed, images are as in evaluation.
            items = itertools.cycle(enumerate(seeds))
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < 3:
                images.read(next(items))
                done += 1
            rates.append(done / (time.perf_counter() - start))
        figures = f"{rates[0]:.0f} training images a second, {rates[1]:.0f} for evaluation"
        print(f"{name}, {size} px: one process prepares {figures}")


# ---- Command line ----------------------------------------------------------------------------------------------------


FLAGS = {
    "runs": dict(nargs="+", metavar="RUN", help="The folder of a run, made by train.py."),
    "run": dict(metavar="RUN", help="The folder of a run, made by train.py."),
    "folder": dict(metavar="DIR", help="The folder that holds the runs."),
    "teacher": dict(nargs="?", default="deit_s", metavar="TEACHER", help="A teacher (default: deit_s)."),
    "--data": dict(
        nargs="+", help=f"Data sets to score on (speed: to prepare): {', '.join(FOLDERS)}, or as in train.py."
    ),
    "--data-root": dict(metavar="DIR", help="Data sets are kept in this folder (default: the run's)."),
    "--ema": dict(action="store_true", help="Use the moving average of the weights, if the run kept one."),
    "--weights": dict(metavar="PATH", help="The file of the teacher's weights (default: the run's)."),
    "--teacher": dict(help="A teacher to show alone, instead of a run."),
    "--blocks": dict(help="The blocks to show, given as in train.py (default: all)."),
    "--out": dict(metavar="FILE", help="The page is written to this file, such as view.html."),
    "--figure": dict(metavar="FILE", help="A picture is drawn to this file: .png, .svg or .pdf."),
    "--csv": dict(metavar="FILE", help="The runs are written to this file, one per line."),
    "--image": dict(metavar="IMG", help="An image file (default: the first held-out image)."),
    "--patch": dict(
        metavar="ROW,COLUMN", help="The patch to show, counted from 0,0 (default: the class token, or the middle)."
    ),
    "--img-size": dict(type=number_from(int, 1), metavar="PX", help="The images' side (default: the teacher's)."),
    "--batch-size": dict(
        type=number_from(int, 1),
        metavar="N",
        help="The number of images per batch (default: as in training, at most 256; for speed 16, on CUDA 128).",
    ),
    "--amp": dict(choices=("auto", "bf16", "fp16", "off"), help="The precision (default: the run's)."),
    "--compile": dict(action="store_true", help="Compile the student."),
    "--workers": dict(type=number_from(int, 0), metavar="N", help="N processes decode images (default: the run's)."),
    "--device": dict(default="auto", help="The device: auto, cpu, cuda, cuda:1 (default: auto)."),
}
# Each subcommand has these arguments. Its name and help are those of its function. A flag with ! is required, and an
# argument with ? is optional.
ACTIONS = {
    accuracy: "runs --data --data-root --ema --weights --batch-size --amp --workers --device",
    table: "folder --csv --figure",
    agreement: "run --figure --data-root --ema --weights --device",
    view: "run? --teacher --out! --image --blocks --data-root --ema --weights --device",
    maps: "run --figure! --image --patch --data-root --ema --weights --device",
    curves: "runs --figure!",
    speed: "teacher --data --data-root --img-size --batch-size --compile --device",
}


def parse_arguments(words: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="ACTION")
    for action, names in ACTIONS.items():
        text = action.__doc__
        sub = subparsers.add_parser(action.__name__, help=text.splitlines()[0], description=text)
        sub.set_defaults(action=action)
        for name in names.split():
            flag, marked = name.rstrip("!?"), {"!": {"required": True}, "?": {"nargs": "?"}}.get(name[-1], {})
            sub.add_argument(flag, **FLAGS[flag], **marked)
    return parser.parse_args(words)


def main() -> None:
    args = parse_arguments()
    args.processes = Processes(getattr(args, "device", "cpu"))
    args.device = args.processes.device
    with redirect_stdout(sys.stdout if args.processes.main else None):  # Only the main process prints.
        args.action(args)


if __name__ == "__main__":
    answer_mistakes(main)
