"""What a trained student is worth: numbers, tables, pictures.

    python eval.py runs/deit_nano-matching-distill-seed0      # accuracy on the run's own validation set
    python eval.py runs/... --data imagenet_a imagenet_v2     # and on others
    python eval.py --table runs --figure gains.png            # gains over the baseline by teacher, and their chart
    python eval.py --agreement runs/...                       # do the student's maps match the teacher's?

The way in from Python is `load_student(folder) -> ViT`.
"""

import argparse
import csv
import json
import platform
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset, TensorDataset
from tqdm import tqdm

from data import (
    DATASETS,
    SOURCES,
    Data,
    Folder,
    Images,
    class_files,
    find_folder,
    has_split,
    load_data,
    loader,
    read_image,
    views,
)
from model import UserError, ViT, ViTConfig, attention_map
from teachers import (
    FAMILIES,
    TEACHERS,
    Arguments,
    answer_mistakes,
    find,
    load_teacher,
    number_from,
    replacing,
    student_config,
)
from transfer import AttentionTransfer, align, measures

# ---------------------------------------------------------------------------------------------------------------
# Reading a run


def read_run(folder: str | Path) -> dict:
    """The config.json of a run; a UserError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run: it has no config.json; train.py makes runs, below runs/ unless told")
    try:
        config = json.loads(path.read_text())
        missing = {"settings", "student", "classes", "command"} - set(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again with --fresh") from error
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: it is not of a run that train.py made")
    return config


def read_result(folder: str | Path) -> dict | None:
    """The result.json of a run; None as long as it is not finished."""
    path = Path(folder) / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
        float(result["top1"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged; remove {folder} and train it again with: {read_run(folder)['command']}"
        ) from error
    return result


def load_student(folder: str | Path, ema: bool = False) -> ViT:
    """The student of a finished run, in eval mode; with `ema`, the moving average of its weights.

    That of a copy run can do nothing by itself, as its own q and k are untrained: see `predictor`.
    """
    config = read_run(folder)
    path = Path(folder) / ("student_ema.safetensors" if ema else "student.safetensors")
    if not path.is_file():
        if ema and (Path(folder) / "student.safetensors").is_file():
            raise UserError(f"{folder} kept no moving average of its weights; leave --ema out, or train with --ema 0.9")
        raise UserError(f"{folder} is not finished; go on with: {config['command']}")
    student = ViT(ViTConfig(**config["student"]))
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the student of its config.json; train it again with --fresh") from error
    return student.eval()


def run_data(settings: dict) -> Data:
    """The data set of a run, at its size and with its teacher's normalisation."""
    mean, std = find(settings["teacher"]).normalisation
    return load_data(
        settings["data"],
        settings["data_root"],
        settings["img_size"],
        mean,
        std,
        train_images=settings["train_images"],
        augment=settings["augment"],
        randaugment=settings["randaugment"],
        erasing=settings["erasing"],
    )


def teacher_title(settings: dict) -> str:
    """The teacher's name, marked if its weights are random."""
    return settings["teacher"] + " (random)" * (settings["weights"] == "random")


def run_teacher(settings: dict) -> ViT:
    """The teacher of a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an untrained teacher, `--weights random`, is the same at every call
        return load_teacher(settings["teacher"], settings["weights"], settings["img_size"])


def transfer_of(settings: dict, student: ViT, teacher: ViT | None) -> AttentionTransfer:
    """The attention transfer of a run."""
    return AttentionTransfer(
        student,
        teacher,
        settings["method"],
        settings["blocks"],
        settings["what"],
        settings["loss"],
        settings["heads"],
        temperature=settings["temperature"],
    )


def predictor(settings: dict, student: ViT, teacher: ViT | None = None) -> Callable[[Tensor], Tensor]:
    """Images to logits: the student, reading with its teacher's routing where the run was Attention Copy."""
    if settings["method"] != "copy":
        return student
    teacher = (teacher or run_teacher(settings)).to(next(student.parameters()).device)
    module = transfer_of(settings, student, teacher).eval()
    return lambda images: module(images)[0]


def open_run(folder: str, args: argparse.Namespace) -> tuple[dict, ViT]:
    """The config of a finished run and its student, on the device; --weights and --data-root replace the run's."""
    config, student = read_run(folder), load_student(folder, args.ema)
    config["settings"] |= {name: getattr(args, name) for name in ("weights", "data_root") if getattr(args, name)}
    return config, student.to(args.device)


# ---------------------------------------------------------------------------------------------------------------
# Accuracy


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    autocast: torch.dtype | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: str = "",
) -> dict[str, float]:
    """Accuracy in percent (top1, top5), mean loss, the number n of images and images_per_s.

    With `shard` (rank, world), the images are split among the processes, each counted once, and the sums exchanged.
    """
    sums, start = torch.zeros(4, dtype=torch.float64), time.perf_counter()
    batches = loader(dataset, batch_size, shard=shard, workers=workers, pin=device.type == "cuda")
    for images, labels in tqdm(batches, desc=progress, disable=not progress, leave=False, unit="batch"):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = predict(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack((best[:, 0].sum(), best.any(1).sum(), loss, loss.new_tensor(len(labels)))).cpu().double()
    if shard[1] > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    top1, top5, loss, n = sums.tolist()
    return {
        "top1": 100 * top1 / n,
        "top5": 100 * top5 / n,
        "loss": loss / n,
        "n": int(n),
        "images_per_s": n / (time.perf_counter() - start),
    }


# Sets of class folders, and where they are below --data-root: as their archives unpack, and under usual other names.
FOLDERS = {
    "imagenet": ["imagenet/val"],
    "imagenet_a": ["imagenet-a"],  # arXiv 1907.07174: natural images that are often mistaken, 200 classes
    "imagenet_r": ["imagenet-r"],  # arXiv 2006.16241: renditions, 200 classes
    "imagenet_sketch": ["sketch", "imagenet-sketch", "ImageNet-Sketch"],  # arXiv 1905.13549
    "imagenet_v2": [
        "imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency",  # arXiv 1902.10811
        "imagenetv2",
        "imagenet-v2",
    ],
}


def class_folder(name: str, root: str) -> Path:
    """Where the class folders of a set are: below the root, or of a folder of images its val/ if it has one."""
    if name in FOLDERS:
        places = [Path(root) / place for place in (*FOLDERS[name], name)]
        for place in places:
            if place.is_dir():
                return place
        raise UserError(f"{name} is not there; put its class folders into {places[0]}, or say where with --data-root")
    folder = find_folder(name, root, [*DATASETS, *FOLDERS])
    return folder / "val" if has_split(folder) else folder


def evaluation_set(config: dict, name: str | None) -> tuple[Dataset, list[int]]:
    """A data set as the run would see it, and which of the student's classes its labels are.

    None is the run's own validation set. ImageNet-A and -R have 200 of the 1,000 classes: the student is asked only
    among these. The folders of ImageNet-V2 are numbered by the sorted WordNet ids.
    """
    settings, known = config["settings"], config["classes"]
    name = name or settings["data"]
    if name == settings["data"] or name == "matching" or name in SOURCES:
        same = name == settings["data"]
        data = run_data(settings if same else settings | {"data": name, "train_images": None})
        dataset, classes = data.val, data.classes
    else:
        folder = class_folder(name, settings["data_root"])
        files = class_files(folder)
        classes = list(files)
        if name == "imagenet_v2" and all(number.isdecimal() for number in classes):
            if max(map(int, classes)) >= len(known):
                raise UserError(
                    f"{folder} numbers classes up to {max(map(int, classes))}, and the student knows "
                    f"{len(known)}; {name} needs one that was trained on imagenet"
                )
            classes = [known[int(number)] for number in classes]
        samples = [(label, path) for label, paths in enumerate(files.values()) for path in paths]
        view, labels = views(name, settings["img_size"])[0], [label for label, _ in samples]
        dataset = Images(
            Folder(samples, list(files)),
            labels,
            range(len(samples)),
            view,
            None,
            None,
            *find(settings["teacher"]).normalisation,
        )
    strange = [class_name for class_name in classes if class_name not in known]
    if strange:
        raise UserError(
            f"{len(strange)} of the {len(classes)} classes of {name}, such as '{strange[0]}', are not "
            f"among the {len(known)} that the student learnt, such as '{known[0]}'; choose data of the "
            f"same classes as {settings['data']}"
        )
    return dataset, [known.index(class_name) for class_name in classes]


HEADER = f"{'run':50} {'data':20} {'top-1':>6} {'top-5':>6} {'n':>7} {'images/s':>8}"


def accuracy_row(run: str, data: str, found: dict) -> str:
    return f"{run:50} {data:20} {found['top1']:6.2f} {found['top5']:6.2f} {found['n']:7d} {found['images_per_s']:8.0f}"


def data_title(config: dict, name: str | None, classes: list[int]) -> str:
    known, name = len(config["classes"]), Path(name or config["settings"]["data"]).name
    return name if len(classes) == known else f"{name} ({len(classes)}/{known})"


def accuracy(args: argparse.Namespace) -> None:
    """Prints a row for each run and data set."""
    opened = [open_run(folder, args) for folder in args.runs]
    print(HEADER)
    for folder, (config, student) in zip(args.runs, opened):
        predict = predictor(config["settings"], student)
        for name in args.data or [None]:
            dataset, classes = evaluation_set(config, name)
            found = evaluate(
                lambda images: predict(images)[:, classes],
                dataset,
                args.batch_size or 256,
                args.device,
                args.workers,
                progress=Path(folder).name,
            )
            print(accuracy_row(Path(folder).name, data_title(config, name, classes), found))


def ensemble(args: argparse.Namespace) -> None:
    """Prints a row for each run, and one for the mean of their probabilities (arXiv 2411.09702, section 4)."""
    opened = [open_run(folder, args) for folder in args.runs]
    print(HEADER)
    for name in args.data or [None]:
        probabilities, truths = [], []
        for folder, (config, student) in zip(args.runs, opened):
            dataset, classes = evaluation_set(config, name)  # with the normalisation of the run's own teacher
            predict, kept = predictor(config["settings"], student), []

            def keep(images: Tensor) -> Tensor:
                logits = predict(images)[:, classes]
                kept.append(logits.float().softmax(-1).cpu())
                return logits

            found = evaluate(
                keep, dataset, args.batch_size or 256, args.device, args.workers, progress=Path(folder).name
            )
            print(accuracy_row(Path(folder).name, data_title(config, name, classes), found))
            probabilities.append(torch.cat(kept))
            truths.append((torch.as_tensor(dataset.labels), [config["classes"][number] for number in classes]))
        if any(theirs[1] != truths[0][1] or not theirs[0].equal(truths[0][0]) for theirs in truths):
            raise UserError(
                "these runs were trained on different data, and have no validation images in common; "
                "name the --data to compare them on"
            )
        # The logarithm of a probability is a logit, too.
        logits = torch.stack(probabilities).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log()
        both = evaluate(lambda x: x, TensorDataset(logits, truths[0][0]), 1000, torch.device("cpu"))
        print(accuracy_row(f"ensemble of {len(opened)}", data_title(config, name, classes), both | {"images_per_s": 0}))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device '{name}' is not there ({str(error).splitlines()[0]}); use cpu") from error
    return device


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def new_figure(path: str, width: float, height: float) -> Any:
    """An empty matplotlib figure of that size in inches, without a window, for `save`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise UserError(f"cannot tell what kind of picture {path} is to be; let its name end in .png, .svg or .pdf")
    return figure


def save(figure: Any, path: str) -> None:
    with replacing(Path(path)) as part:
        figure.savefig(part, format=Path(path).suffix[1:].lower(), dpi=150)
    print(f"drawn: {path}")


def draw_curves(args: argparse.Namespace) -> None:
    """Draws loss and accuracy by epoch."""
    figure = new_figure(args.curves, 12, 3.6 + 0.2 * len(args.runs))
    panels = figure.subplots(1, 3)
    for number, folder in enumerate(args.runs):
        settings, path = read_run(folder)["settings"], Path(folder) / "log.jsonl"
        try:
            log = [json.loads(line) for line in path.read_text().splitlines()]
            epochs = [line["epoch"] for line in log]
            transfer = [line["transfer_loss"] for line in log]
            classification = [line["loss"] - settings["weight"] * line["transfer_loss"] for line in log]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is missing or damaged; train the run again with --fresh") from error
        if not log:
            raise UserError(f"{folder} has not finished an epoch; there is nothing to draw yet")
        seen = [line for line in log if "val_top1" in line]
        style = dict(color=f"C{number % 10}", linestyle=("-", "--", ":", "-.")[number // 10 % 4], marker=".")
        panels[0].plot(epochs, classification, label=Path(folder).name, **style)
        if any(transfer):
            panels[1].plot(epochs, transfer, **style)
        panels[2].plot([line["epoch"] for line in seen], [line["val_top1"] for line in seen], **style)
    titles = "classification loss, training", "transfer loss, training", "top-1, validation (%)"
    for panel, title in zip(panels, titles):
        panel.set(title=title, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    if not panels[1].lines:
        panels[1].text(0.5, 0.5, "no run distils", ha="center", transform=panels[1].transAxes)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save(figure, args.curves)


# ---------------------------------------------------------------------------------------------------------------
# The table of Qin et al. (arXiv 2605.07191): what each teacher's attention is worth

COLUMNS = ["baseline", "copy", "distill", "native copy", "native distill", "native baseline"]
# What two runs must share to be compared: the data, and all of the recipe that a baseline has too.
CONDITIONS = [
    "data",
    "train_images",
    "img_size",
    "epochs",
    "batch_size",
    "lr",
    "beta2",
    "weight_decay",
    "warmup",
    "clip",
    "layer_decay",
    "drop_path",
    "mixup",
    "cutmix",
    "erasing",
    "smoothing",
    "augment",
    "randaugment",
]
VARIANTS = dict(what="map", loss="cross_entropy", temperature=1.0, weight=3.0, blocks=None, heads=None, init=None)


def variant(settings: dict) -> list[str]:
    """The settings of a run's method that are not the usual ones, as name=value."""
    unused = {"transfer": (), "baseline": set(VARIANTS) - {"init"}, "finetune": VARIANTS}[settings["mode"]]
    if settings["method"] == "copy":
        unused = ("loss", "temperature", "weight")
    return [
        f"{name}={settings[name]}" for name, usual in VARIANTS.items() if name not in unused and settings[name] != usual
    ]


def column_of(settings: dict) -> str:
    """In which column of the table a run is: the method, with its student and variant if not the usual ones."""
    words = [] if settings["student"] == "standard" else [settings["student"]]
    return " ".join([*words, settings["method"] or settings["mode"], *variant(settings)])


def collect(folder: str) -> dict[tuple, dict]:
    """Top-1 of all finished runs below a folder, by conditions, teacher (name, title), column and seed."""
    tables, unfinished = {}, []
    for path in sorted(Path(folder).rglob("config.json")):
        settings, result = read_run(path.parent)["settings"], read_result(path.parent)
        if result is None:
            unfinished.append(path.parent.name)
            continue
        conditions = tuple(settings.get(name) for name in CONDITIONS)
        find(settings["teacher"])
        teacher = settings["teacher"], teacher_title(settings)
        seeds = tables.setdefault(conditions, {}).setdefault(teacher, {}).setdefault(column_of(settings), {})
        if settings["seed"] in seeds:
            print(f"{path.parent} has the settings of another run and is left out")
        else:
            seeds[settings["seed"]] = result["top1"]
    if unfinished:
        print(f"{len(unfinished)} unfinished left out: {', '.join(unfinished)}")
    if not tables:
        raise UserError(f"no finished runs below {folder}; train.py makes them, and names their folder with --out")
    return tables


def gains(table: dict) -> list[dict]:
    """Rows by family: {"family", "teacher", column: differences to the baseline of the same seed, in points}.

    Under "baseline" is its accuracy itself. It does not depend on the teacher's weights, so that untrained teachers
    share it.
    """
    families, teachers, rows = list(FAMILIES), list(TEACHERS), []
    place = {name: (families.index(entry.family), teachers.index(name)) for name, entry in TEACHERS.items()}
    for name, title in sorted(table, key=lambda key: (place[key[0]], key[1])):
        baseline = table.get((name, name), {}).get("baseline", {})
        found = {"family": FAMILIES[find(name).family].title, "teacher": title, "baseline": list(baseline.values())}
        for kind, seeds in table[name, title].items():
            if kind != "baseline":
                found[kind] = [top1 - baseline[seed] for seed, top1 in seeds.items() if seed in baseline]
                if len(found[kind]) < len(seeds):
                    print(
                        f"{found['teacher']}, {kind}: {len(seeds) - len(found[kind])} of {len(seeds)} seeds have no "
                        f"baseline of that seed and are left out; train it with --mode baseline"
                    )
        rows.append(found)
    return rows


def columns_of(rows: list[dict]) -> list[str]:
    return COLUMNS + sorted({kind for found in rows for kind in found} - {"family", "teacher", *COLUMNS})


def cell(kind: str, values: list[float]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):{'.1f' if kind == 'baseline' else '+.1f'}}"
    text += f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"**{text}**" if kind != "baseline" and statistics.mean(values) < 0 else text


def title_of(conditions: tuple, all_conditions: list[tuple]) -> str:
    """The data, and whatever else not all tables share."""
    named = dict(zip(CONDITIONS, conditions))
    data = Path(named["data"]).name
    if any(Path(other[0]).name == data and other[0] != named["data"] for other in all_conditions):
        data = named["data"]
    images = f", {named['train_images']:,} training images" if named["train_images"] else ""
    title = f"{data}{images}, {named['img_size']} px, {named['epochs']} epochs"
    return title + "".join(
        f", {name} {value}"
        for number, (name, value) in enumerate(named.items())
        if number >= 4 and len({other[number] for other in all_conditions}) > 1
    )


def markdown(rows: list[dict]) -> str:
    kinds = columns_of(rows)
    lines = [["family", "teacher", *kinds]]
    lines += [[row["family"], row["teacher"], *(cell(kind, row.get(kind, [])) for kind in kinds)] for row in rows]
    widths = [max(map(len, parts)) for parts in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, parts, widths))} |" for parts in lines)


def print_table(args: argparse.Namespace) -> None:
    """Prints the table; writes it with --csv, draws it with --figure."""
    tables = collect(args.table)
    titles = {conditions: title_of(conditions, list(tables)) for conditions in tables}
    if len(tables) > 1:
        differ = [name for number, name in enumerate(CONDITIONS) if len({key[number] for key in tables}) > 1]
        print(f"{len(tables)} tables: runs that differ in {', '.join(differ)} cannot be compared")
    found = {titles[conditions]: gains(rows) for conditions, rows in tables.items()}
    for title, rows in found.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    print(
        "\nTop-1 of the baseline in percent, and what was gained over the baseline of the same seed, in points: mean "
        "± standard\ndeviation over seeds. **Bold**: a failure, below the baseline."
    )
    if args.csv:
        write_csv(found, args.csv)
    if args.figure:
        bars(found, args.figure)


def write_csv(found: dict[str, list[dict]], path: str) -> None:
    kinds = columns_of([row for rows in found.values() for row in rows])
    with replacing(Path(path)) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        figures = [kind + what for kind in kinds for what in ("", " sd", " seeds")]
        writer.writerow(["runs", "family", "teacher", *figures])
        for title, rows in found.items():
            for row in rows:
                cells = [title, row["family"], row["teacher"]]
                for values in (row.get(kind, []) for kind in kinds):
                    cells += [
                        f"{statistics.mean(values):.3f}" if values else "",
                        f"{statistics.stdev(values):.3f}" if len(values) > 1 else "",
                        len(values),
                    ]
                writer.writerow(cells)
    print(f"written: {path}")


BAR_COLOURS = {
    "copy": "#9ecae1",
    "distill": "#3182bd",
    "native copy": "#fdae6b",
    "native distill": "#e6550d",
    "native baseline": "#bdbdbd",
}


def bars(found: dict[str, list[dict]], path: str) -> None:
    """Draws the gain over the baseline by teacher: standard students blue, native ones orange."""
    most = max(map(len, found.values()))
    figure = new_figure(path, max(6.4, 2.4 + 0.7 * most), 4.2 * len(found))
    for axes, (title, rows) in zip(figure.subplots(len(found), squeeze=False)[:, 0], found.items()):
        kinds = [kind for kind in columns_of(rows)[1:] if any(row.get(kind) for row in rows)]
        width = 0.8 / max(1, len(kinds))
        for number, kind in enumerate(kinds):
            having = [(place, row[kind]) for place, row in enumerate(rows) if row.get(kind)]
            axes.bar(
                [place + (number - (len(kinds) - 1) / 2) * width for place, _ in having],
                [statistics.mean(values) for _, values in having],
                width,
                zorder=2,
                color=BAR_COLOURS.get(kind, f"C{number + 2}"),
                label=kind.replace("native", "native student,"),
                yerr=[statistics.stdev(values) if len(values) > 1 else 0 for _, values in having],
                error_kw=dict(elinewidth=0.8, capsize=2),
            )
        families = [row["family"] for row in rows]
        for start in [place for place, family in enumerate(families) if place == 0 or family != families[place - 1]]:
            count = families.count(families[start])
            axes.axvline(start - 0.5, color="0.8", linewidth=0.8)
            axes.text(
                start + (count - 1) / 2,
                1.01,
                families[start],
                ha="center",
                va="bottom",
                fontsize="small",
                rotation=0 if most < 8 or count > 1 else 30,
                transform=axes.get_xaxis_transform(),
            )
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xticks(range(len(rows)), [row["teacher"] for row in rows], rotation=30, ha="right", fontsize="small")
        axes.set(xlim=(-0.5, most - 0.5), ylabel="gain over the baseline, points")
        axes.set_title(title, fontsize="medium", pad=24 if most < 8 else 48)
        axes.grid(axis="y", alpha=0.3)
        if kinds:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    save(figure, path)


# ---------------------------------------------------------------------------------------------------------------
# Maps


@torch.inference_mode()
def both_maps(settings: dict, student: ViT, teacher: ViT, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of teacher and student by block, each (B, H, N, N) among the student's tokens.

    The student's are those that it reads with: where a run copies, the teacher's.
    """
    ours: list[Tensor] = []
    reroutes = {}
    if settings["method"] == "copy":
        reroutes = transfer_of(settings, student, teacher).reroutes(images, None)
    student(images, reroutes, watch=lambda number, attended: ours.append(attention_map(attended.routing)))
    routings = teacher.route(images, teacher.config.depth)
    return [attention_map(align(routing, teacher.config, student.config)) for routing in routings], ours


def open_both(args: argparse.Namespace) -> tuple[dict, ViT, ViT]:
    config, student = open_run(args.runs[0], args)
    if config["settings"]["method"] == "copy":
        print("a copy run: where it copies, the student's maps are the teacher's")
    return config, student, run_teacher(config["settings"]).to(args.device)


def query_token(patch: str | None, config: ViTConfig) -> tuple[int, tuple[int, int] | None]:
    """Whose row of the map is shown: its number among the tokens, and (row, column) if it is a patch."""
    if patch is None and config.class_token:
        return 0, None
    try:
        row, column = map(int, patch.split(",")) if patch else (config.grid // 2, config.grid // 2)
    except ValueError:
        raise UserError(f"--patch {patch} is not ROW,COLUMN, such as 0,{config.grid - 1}") from None
    if not (0 <= row < config.grid and 0 <= column < config.grid):
        raise UserError(
            f"--patch {patch} is not in the grid of {config.grid} x {config.grid} patches; rows and "
            f"columns count from 0 to {config.grid - 1}"
        )
    return config.prefix + row * config.grid + column, (row, column)


def chosen_image(path: str | None, settings: dict) -> Tensor:
    """An image file as the run would see it, or the first validation image: (3, S, S), normalised."""
    if path is None:
        return run_data(settings).val[0][0]
    from PIL import Image

    try:
        image = read_image(Path(path))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot open {path} as an image; give the path of a picture") from error
    view = views(settings["data"], settings["img_size"])[0]
    return Images([(image, 0)], [0], [0], view, None, None, *find(settings["teacher"]).normalisation)[0][0]


def mosaic(maps: Tensor) -> Tensor:
    """Small maps (blocks, heads, rows, columns) side by side, with a gap of one between them, as one picture."""
    L, H, rows, columns = maps.shape
    picture = torch.full((L, rows + 1, H, columns + 1), torch.nan)
    picture[:, :rows, :, :columns] = maps.permute(0, 2, 1, 3)
    return picture.view(L * (rows + 1), H * (columns + 1))[:-1, :-1]


def draw_maps(args: argparse.Namespace) -> None:
    """Draws where one token looks, in every block and head of teacher and student."""
    config, student, teacher = open_both(args)
    settings, shape = config["settings"], student.config
    token, patch = query_token(args.patch, shape)
    image = chosen_image(args.image, settings)
    rows = [
        torch.cat(side)[:, :, token, shape.prefix :].unflatten(-1, (shape.grid, shape.grid)).float().cpu()
        for side in both_maps(settings, student, teacher, image[None].to(args.device))
    ]
    brightest = torch.maximum(*rows).amax((-2, -1), keepdim=True)  # of a head in both, so that the two can be compared
    unit = 0.8 if shape.depth < 8 else 0.6
    figure = new_figure(args.maps, 2 * unit * shape.heads + 3.4, max(3.2, unit * shape.depth + 1))
    panels = figure.subplots(1, 3, width_ratios=(2.6, unit * shape.heads, unit * shape.heads))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in find(settings["teacher"]).normalisation)
    panels[0].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
    panels[0].set_axis_off()
    query = "the class token" if patch is None else f"patch {patch[0]},{patch[1]}"
    panels[0].set_title(f"where {query} looks", fontsize="medium")
    if patch:
        from matplotlib.patches import Rectangle

        corner = (patch[1] * shape.patch_size - 0.5, patch[0] * shape.patch_size - 0.5)
        panels[0].add_patch(Rectangle(corner, shape.patch_size, shape.patch_size, fill=False, color="red", linewidth=2))
    method = settings["method"] or settings["mode"]
    names = [f"teacher: {teacher_title(settings)}", f"student: {settings['student']}, {method}"]
    if method == "copy":
        names[1] += "\n(reads with the teacher's maps)"
    for panel, name, row in zip(panels[1:], names, rows):
        panel.imshow(mosaic(row / brightest).numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(name, fontsize="medium")
        middle = (shape.grid - 1) / 2
        panel.set_xticks([middle + (shape.grid + 1) * head for head in range(shape.heads)], range(shape.heads))
        panel.set_yticks([middle + (shape.grid + 1) * block for block in range(shape.depth)], range(shape.depth))
        panel.set(xlabel="head", ylabel="block")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    save(figure, args.maps)


PAIRS = {"entropy": "nats", "distance": "patches", "class token": "share", "registers": "share", "sink": "share"}


def agreement(args: argparse.Namespace) -> None:
    """Prints, and draws with --figure, the measures of transfer.py by block, over the first 64 validation images."""
    config, student, teacher = open_both(args)
    settings, dataset = config["settings"], run_data(config["settings"]).val
    n, found = min(64, len(dataset)), {}
    for images, _ in tqdm(loader(Subset(dataset, range(n)), 8), desc="maps", leave=False, unit="batch"):
        pairs = zip(*both_maps(settings, student, teacher, images.to(args.device)))
        by_block = [measures(*pair, student.config) for pair in pairs]
        for name in by_block[0]:  # (blocks, heads), each batch by its share
            value = torch.stack([block[name] for block in by_block]).cpu() * (len(images) / n)
            found[name] = found.get(name, 0) + value
    top1 = (read_result(args.runs[0]) or {}).get("top1")
    title = (
        f"{Path(args.runs[0]).name}{'' if top1 is None else f', top-1 {top1:.1f}'}: maps over {n} images, teacher "
        f"{teacher_title(settings)}"
    )
    print(f"{title}; mean over heads, teacher > student\n")
    print(f"{'block':>5} {'KL':>6} {'JS':>6} " + " ".join(f"{name:>13}" for name in PAIRS))
    average = {name: value.mean(1).tolist() for name, value in found.items()}
    for block in range(student.config.depth):
        cells = [
            " > ".join(f"{average[f'{side} {name}'][block]:5.2f}" for side in ("teacher", "student")) for name in PAIRS
        ]
        print(f"{block:5d} {average['kl'][block]:6.3f} {average['js'][block]:6.3f} " + " ".join(cells))
    if args.figure:
        figure = new_figure(args.figure, 10, 5.6)
        figure.suptitle(title)
        lines = {"KL and JS (nats)": {"KL": "kl", "JS": "js"}}
        lines |= {
            f"{name} ({unit})": {side: f"{side} {name}" for side in ("teacher", "student")}
            for name, unit in PAIRS.items()
        }
        blocks = range(student.config.depth)
        for panel, (measure, sides) in zip(figure.subplots(2, 3).flat, lines.items()):
            for number, (side, name) in enumerate(sides.items()):
                panel.plot(blocks, average[name], "-o", color=f"C{number}", markersize=4, label=side)
                panel.plot(blocks, found[name].numpy(), ".", color=f"C{number}", alpha=0.4, markersize=4)  # each head
            panel.set(title=measure, xlabel="block", xticks=blocks)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
        save(figure, args.figure)


# ---------------------------------------------------------------------------------------------------------------
# Speed


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive; `peak` is the most. What kernels use is not seen."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, count: int) -> None:
        self.live -= count


def step_cost(step: Callable[[], None], known: list[Tensor]) -> float:
    """The peak memory of a step in MB, above what was there before."""
    if known[0].is_cuda:
        device = known[0].device
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with LiveBytes(known) as memory:
        step()
    return memory.peak / 1e6


def speed(args: argparse.Namespace) -> None:
    """Prints what a step of copy and distillation costs, as a ratio to the baseline's, in time and memory.

    The variants take turns, and a ratio is the median of those within one round: what else the machine does hits all.
    """
    entry, device = find(args.speed), args.device
    size, batch = args.img_size or entry.img_size, args.batch_size or (128 if device.type == "cuda" else 16)
    config = student_config(args.speed, img_size=size)
    student, teacher = ViT(config).to(device).train(), load_teacher(args.speed, "random", size).to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(config.num_classes, (batch,), device=device)
    blocks = args.blocks or max(1, config.depth * 3 // 4)
    variants: dict[str, nn.Module] = {"baseline": student}
    for method, flash in ("copy", True), ("copy", False), ("distill", True), ("distill", False):
        variants[f"{method}, {'flash' if flash else 'plain'}"] = AttentionTransfer(
            student, teacher, method, blocks if method == "distill" else None, flash=flash
        ).train()

    def step(module: nn.Module) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = module(images)
        logits, transfer_loss = output if isinstance(output, tuple) else (output, 0.0)
        (F.cross_entropy(logits.float(), labels) + 3 * transfer_loss).backward()
        student.zero_grad()

    def seconds(module: nn.Module) -> float:
        start = time.perf_counter()
        step(module)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    where = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, float32"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, bfloat16"
    print(
        f"{args.speed} (random weights, as good for this), {size} px, batch {batch}, distilling blocks {blocks}; "
        f"{where}, torch {torch.__version__}"
    )
    known = [images, labels, *student.parameters(), *student.buffers(), *teacher.parameters(), *teacher.buffers()]
    warm_up = sum(map(seconds, variants.values()))
    memory = {name: step_cost(lambda: step(module), known) for name, module in variants.items()}
    rounds = int(min(50, max(11, 30 / warm_up)))
    times = [
        {name: seconds(module) for name, module in variants.items()}
        for _ in tqdm(range(rounds), desc="rounds", leave=False)
    ]
    print(f"{'':15} {'step, s':>8} {'ratio':>6} {'peak MB':>8} {'ratio':>6}")
    for name in variants:
        ratio = statistics.median(one[name] / one["baseline"] for one in times)
        print(
            f"{name:15} {statistics.median(one[name] for one in times):8.3f} {ratio:6.2f} {memory[name]:8.0f} "
            f"{memory[name] / memory['baseline']:6.2f}"
        )
    print(
        f"forward and backward, medians of {rounds} rounds, of the ratios within a round too; memory above the "
        f"parameters"
    )


# ---------------------------------------------------------------------------------------------------------------
# Command line

# The modes: what each does, how many RUNs it takes, and which options go with it. Without a mode, accuracy.
OWN, SETS = {"ema", "weights", "data_root"}, {"data", "batch_size", "workers"}
ACTIONS = {
    "": (accuracy, "RUN...", OWN | SETS),
    "ensemble": (ensemble, "RUN RUN", OWN | SETS),
    "table": (print_table, "", {"csv", "figure"}),
    "curves": (draw_curves, "RUN...", set()),
    "maps": (draw_maps, "RUN", OWN | {"image", "patch"}),
    "agreement": (agreement, "RUN", OWN | {"figure"}),
    "speed": (speed, "", {"img_size", "batch_size", "blocks"}),
}


def parse_arguments() -> argparse.Namespace:
    parser = Arguments(description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a folder that train.py made")
    add = parser.add_argument_group("instead of accuracy (one of these)").add_mutually_exclusive_group().add_argument
    add(
        "--table",
        metavar="DIR",
        help="what all finished runs below DIR gained over their baselines\n"
        "  python eval.py --table runs --csv gains.csv --figure gains.png",
    )
    add(
        "--curves",
        metavar="FILE.png",
        help="loss and accuracy by epoch\n  python eval.py --curves curves.png runs/*seed0",
    )
    add(
        "--maps",
        metavar="FILE.png",
        help="an image, and where teacher and student look\n"
        "  python eval.py --maps maps.png RUN --image cat.jpg --patch 3,4",
    )
    add(
        "--agreement",
        action="store_true",
        help="how well the student's maps match the teacher's, by block\n"
        "  python eval.py --agreement RUN --figure agreement.png",
    )
    add(
        "--ensemble",
        action="store_true",
        help="the mean of two students' probabilities\n  python eval.py --ensemble RUN_A RUN_B",
    )
    add(
        "--speed",
        nargs="?",
        const="deit_s",
        metavar="TEACHER",
        help="time and memory of a training step (deit_s)\n  python eval.py --speed dino_b --batch-size 8",
    )
    add = parser.add_argument_group("options").add_argument
    add(
        "--data",
        nargs="+",
        metavar="DATA",
        help=f"other test sets: {', '.join(FOLDERS)},\nor as in train.py; a "
        "folder of class folders counts whole\n  python eval.py RUN --data imagenet_a imagenet_r --data-root /data",
    )
    add("--data-root", metavar="DIR", help="where data sets are kept (the run's)")
    add("--ema", action="store_true", help="the moving average of the weights, if the run kept one")
    add("--weights", metavar="PATH", help="the teacher's file (the run's)")
    add("--csv", metavar="FILE", help="with --table: the same as a file\n  python eval.py --table runs --csv gains.csv")
    add(
        "--figure",
        metavar="FILE.png",
        help="with --table: a bar chart of it; with --agreement: its curves\n"
        "  python eval.py --table runs --figure gains.png",
    )
    add("--image", metavar="IMG", help="with --maps: a picture (the first validation image)")
    add(
        "--patch",
        metavar="ROW,COLUMN",
        help="with --maps: which patch looks, from 0,0\n(the class token, or without one the central patch)",
    )
    add("--img-size", type=number_from(int, 1), metavar="PX", help="with --speed: (the teacher's)")
    add("--blocks", type=number_from(int, 1), metavar="N", help="with --speed: blocks to distil (three quarters)")
    add("--batch-size", type=number_from(int, 1), metavar="N", help="(256; with --speed 16, on CUDA 128)")
    add("--workers", type=number_from(int, 0), metavar="N", help="processes that decode images (0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    mode = next((name for name in ACTIONS if name and getattr(args, name)), "")
    (action, runs, options), flag = ACTIONS[mode], f"--{mode}" if mode else "accuracy"
    if len(args.runs) < len(runs.split()) or len(args.runs) > len(runs.split()) and runs != "RUN...":
        raise UserError(f"{flag} takes {runs or 'no RUN'}, and was given {len(args.runs)} of them; see --help")
    for name in set().union(*(entry[2] for entry in ACTIONS.values())) - options:
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with {flag}; see --help")
    args.device, args.workers = pick_device(args.device), args.workers or 0
    try:
        action(args)
    except torch.OutOfMemoryError as error:
        raise UserError("this does not fit into the memory of the GPU; choose a smaller --batch-size") from error


if __name__ == "__main__":
    answer_mistakes(main)
