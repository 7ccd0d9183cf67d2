"""Trains students: with a teacher's attention (transfer), without (baseline), or from a teacher's weights (finetune).

    python train.py                                          # a nano teacher, baseline and transfer, in minutes
    python train.py --teacher eva02_s --mode transfer        # a real one: downloads its weights and Imagenette
    torchrun --nproc_per_node=8 train.py --teacher ...       # on several GPUs

Several values of --teacher, --data, --mode, --method, --student or --seed make a grid of runs, one after another. Each
run has a folder. A run that was stopped goes on with the same command; one that is finished is not trained again.

Read this file after transfer.py: `Settings` has every knob of a run, and `train` is the loop.
"""

import itertools
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model import ViT
from support import runs
from support.arguments import Parser, add_flags, flag, number_from, parse_blocks
from support.data import DATASETS, Data, Loader, check_images, find_folder, load_data, plan_epoch
from support.errors import UserError, answer_mistakes, in_a_line, not_finite
from support.processes import Processes, mixed_precision, spare_cores
from support.tables import Result, compare, print_tables
from support.training import Meter, cosine_schedule, evaluate, mixing, parameter_groups
from support.weights import replacing
from teachers import FAMILIES, TEACHERS, find, fingerprint, load_teacher, shape_of, student_config
from transfer import LOSSES, METHODS, WHAT, AttentionTransfer, init_from

# The recipes of Li et al. (arXiv 2411.09702), as in their public code, where they are not the desk's. Fine-tuning is
# MAE's (arXiv 2111.06377), for ViT-B and ViT-L.
PAPER = dict(clip=0.0, mixup=0.8, cutmix=1.0, erasing=0.25, randaugment=9.0, smoothing=0.1)
TRANSFER, FINETUNE = dict(batch_size=2048, ema=0.9999), dict(batch_size=1024, beta2=0.999, warmup=5.0)
COPY = dict(epochs=100, lr=1e-3, lr_floor=0.25, beta2=0.999, warmup=5.0, layer_decay=0.75)
DISTILL = dict(epochs=200, lr=1e-4, lr_floor=0.00125, beta2=0.95, warmup=20.0, weight_decay=0.3, drop_path=0.2)
RECIPES = {
    "copy": PAPER | TRANSFER | COPY,
    "distill": PAPER | TRANSFER | DISTILL,
    "finetune": PAPER | FINETUNE | dict(epochs=100, lr=5e-4, lr_floor=0.0005, layer_decay=0.65, drop_path=0.1),
    "finetune L": PAPER | FINETUNE | dict(epochs=50, lr=1e-3, lr_floor=0.00025, layer_decay=0.75, drop_path=0.2),
}
OF_RECIPES = {name for recipe in RECIPES.values() for name in recipe}  # the settings that they decide on
INCIDENTAL = ("data_root", "device", "amp", "compile", "workers", "accumulate")  # may differ when a run goes on
VARIANTS = ("what", "loss", "weight", "blocks", "init")  # are named where they are not the usual

# May have several values, in the order of the runs.
SEVERAL = ("teacher", "teacher_seed", "seed", "data", "mode", "student", "method")

GRID = "what to run (several values make a grid)"
ANY_DATA = f"{', '.join(DATASETS)}, or a folder of class folders (matching for nano teachers, else imagenette)"
COUNT, WHOLE, NUMBER = number_from(int, 1), number_from(int, 0), number_from(float, 0)
SHARE, BELOW_1 = number_from(float, 0, 1), number_from(float, 0, 0.999999)
RECIPE_HELP = (
    "paper: as published for copy, distill (the baseline's too) and finetune (MAE's: L's, or B's for all others)"
)
BLOCKS_HELP = "a count of the first ones, 3-8, or 0,4,8 (all; to distill from real teachers three quarters)"


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on. Each field is a flag of the command line, with its default and its help.

    The defaults are a quick recipe for the desk. A None is filled in by `settle`, or means what its help says.
    """

    # What to run. Of these a command may give several values.
    teacher: str = flag("deit_nano", "python teachers.py lists them", nargs="+", metavar="ID", group=GRID)
    teacher_seed: int = flag(0, "of a nano teacher's pretraining", number_from(int, 0, 1000), nargs="+")
    # Without a teacher, with its attention, or from its weights.
    mode: str | None = flag(None, "(baseline transfer)", choices=("baseline", "transfer", "finetune"), nargs="+")
    method: str | None = flag("distill", "of transfer", choices=METHODS, nargs="+")
    student: str = flag("standard", "standard, native, or a comma list of the teacher's components", nargs="+")
    data: str | None = flag(None, ANY_DATA, nargs="+")
    seed: int = flag(0, "of the student and of all that is random", number_from(int, 0, 2**32 - 1), nargs="+")

    # Attention transfer.
    blocks: str | None = flag(None, BLOCKS_HELP, group="transfer")
    weight: float = flag(3.0, "of the transfer loss", NUMBER)
    what: str | None = flag("map", "output to distill only", choices=WHAT)
    loss: str | None = flag("cross_entropy", "between maps", choices=LOSSES)
    weights: str | None = flag(None, "the teacher's file; 'random' for an untrained one, as a control", metavar="PATH")
    init: str | None = flag(None, "parts of the teacher's weights: attention, mlp, norms, embeddings, all")

    # Data.
    data_root: str = flag("data", "where data sets are kept", group="data")
    train_images: int | None = flag(None, "a fixed, class-balanced subset of so many", COUNT)
    img_size: int | None = flag(None, "in pixels (the teacher's; 224 for DINOv2)", COUNT)
    workers: int | None = flag(None, "processes that decode images (the cores, at most 8; none for matching)", WHOLE)
    augment: bool = flag(True, "random crops and flips")
    randaugment: float = flag(0.0, "magnitude of RandAugment; 0 is off", number_from(float, 0, 10))  # arXiv 1909.13719

    # Recipe.
    recipe: str = flag("desk", RECIPE_HELP, choices=("desk", "paper"), group="recipe")
    epochs: int = flag(50, "passes over the training images", COUNT)
    batch_size: int = flag(128, "images a step, over all processes", COUNT)
    lr: float | None = flag(None, "learning rate for a batch of 256, scaled to the one in use (0.006; 0.0005)", NUMBER)
    lr_floor: float = flag(0.0, "the share of the learning rate that is left at the end", SHARE)
    beta2: float = flag(0.98, "of AdamW", BELOW_1)  # beta1 is 0.9
    weight_decay: float = flag(0.05, "of matrices", NUMBER)
    warmup: float | None = flag(None, "epochs in which the learning rate rises (a tenth of all)", NUMBER)
    clip: float = flag(1.0, "largest norm of the gradient; 0 is off", NUMBER)
    layer_decay: float = flag(1.0, "of the learning rate from a block to the one before", number_from(float, 1e-3, 1))
    drop_path: float = flag(0.0, "rate of stochastic depth", BELOW_1)  # arXiv 1603.09382
    mixup: float = flag(0.0, "alpha; 0 is off", NUMBER)  # arXiv 1710.09412
    cutmix: float = flag(0.0, "alpha; 0 is off", NUMBER)  # arXiv 1905.04899
    erasing: float = flag(0.0, "probability of random erasing", SHARE)  # arXiv 1708.04896
    smoothing: float = flag(0.0, "of the labels", BELOW_1)
    ema: float = flag(0.0, "decay of a moving average of the weights; 0 is off", BELOW_1)
    accumulate: int = flag(1, "cut each batch into so many pieces, to save memory", COUNT)

    # Machine.
    device: str = flag("auto", "auto, cpu, cuda, cuda:1", group="machine")
    amp: str = flag("auto", "auto: bf16 or else fp16 on CUDA, off elsewhere", choices=("auto", "bf16", "fp16", "off"))
    compile: bool = flag(False, "compile the student")

    @property
    def title(self) -> str:
        """What a run is: its method, or else its mode."""
        return self.method or self.mode

    @property
    def parts(self) -> str | None:
        """What of the teacher's weights the student begins with."""
        return "all" if self.mode == "finetune" else self.init

    @property
    def needs_teacher(self) -> bool:
        """Whether a run needs the teacher's weights: a baseline needs only its shape."""
        return self.mode == "transfer" or bool(self.parts)

    @property
    def teacher_title(self) -> str:
        """The teacher's name, marked if its weights are random or of another pretraining."""
        pretraining = f" (seed {self.teacher_seed})" if self.teacher_seed else ""
        return self.teacher + " (random)" * (self.weights == "random") + pretraining


def parse_arguments(words: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add_flags(parser, Settings)
    parser.add_argument("--out", default="runs", metavar="DIR", help="where the folders of the runs are (runs)")
    parser.add_argument("--fresh", action="store_true", help="start over where a run is on disk")
    return parser.parse_args(words)


def plan_runs(args: Namespace) -> list[Settings]:
    """The settings of every run that the command asks for, complete and checked, in the order of the runs."""
    typed = vars(args).copy()  # the flags that were given
    del typed["out"], typed["fresh"]  # they do not belong to one run
    several = {name: typed.pop(name, [getattr(Settings, name)]) for name in SEVERAL}
    if several["mode"] == [None]:
        several["mode"] = ["baseline", "transfer"]
    if typed.get("weights", "random") != "random" and len(set(several["teacher"])) > 1:
        raise UserError("--weights is the file of one teacher, not of several; give one --teacher")
    plan = []  # in the order in which they are trained
    for values in itertools.product(*several.values()):
        asked = Settings(**typed, **dict(zip(SEVERAL, values, strict=True)))
        # The recipe depends on what is run. A flag that was given comes before it.
        settings = settle(replace(asked, **recipe_of(asked) | typed))
        if settings not in plan:  # a baseline has no method, and is the same for all
            plan.append(settings)
    return plan


def recipe_of(settings: Settings) -> dict:
    """The published recipe for what is run, or nothing at the desk, whose recipe is the defaults of `Settings`."""
    if settings.recipe == "desk":
        return {}
    if settings.mode == "finetune":
        return RECIPES["finetune L" if find(settings.teacher).config.depth == 24 else "finetune"]
    return RECIPES[settings.method if settings.mode == "transfer" else "distill"]  # so does a baseline train


def usual_blocks(settings: Settings) -> str | None:
    """A transfer's blocks unless told: to distill, three quarters of a real teacher's, and else all, which is None."""
    teacher = find(settings.teacher)
    distills_real = settings.method == "distill" and teacher.url
    return str(teacher.config.depth * 3 // 4) if distills_real else None


def settle(settings: Settings) -> Settings:
    """Fills in what was left out and clears what the run does not use. Raises a `UserError` if the run cannot be."""
    teacher = find(settings.teacher)
    data = settings.data or ("imagenette" if teacher.url else "matching")
    if data == "imagenet" or data not in DATASETS:
        find_folder(data, settings.data_root)  # raises if there is none
        data = str(Path(data))  # one name, however it was typed
    workers = 0 if data == "matching" else spare_cores()  # its images need no decoding
    changes = {
        "data": data,
        "method": settings.method if settings.mode == "transfer" else None,
        "img_size": settings.img_size or teacher.img_size,
        "workers": workers if settings.workers is None else settings.workers,
        "lr": (5e-4 if teacher.url else 6e-3) if settings.lr is None else settings.lr,
        "warmup": settings.epochs / 10 if settings.warmup is None else settings.warmup,
        "blocks": settings.blocks or usual_blocks(settings),
    }
    if settings.teacher_seed and (teacher.url or settings.weights):
        raise UserError("--teacher-seed is for nano teachers that are pretrained here; leave it out")
    if changes["warmup"] >= settings.epochs:
        raise UserError(f"a warm-up of {settings.warmup:g} epochs leaves none of {settings.epochs}; lower --warmup")
    # What the run does not use goes back to its default, so that it is in no name.
    unused_by = {"transfer": [], "baseline": ["blocks", "weight", "what", "loss"], "finetune": [*VARIANTS]}
    unused = ["weight", "loss"] if changes["method"] == "copy" else unused_by[settings.mode]
    if not settings.needs_teacher:
        unused += ["weights", "teacher_seed"]
    if data == "matching" or not settings.augment:
        unused += ["randaugment", "erasing"]
    settings = replace(settings, **changes | {name: getattr(Settings, name) for name in unused})

    # A trial with models that have shapes and no memory.
    student = shape_of(student_config(settings.teacher, settings.student, 2, settings.img_size))
    theirs = shape_of(replace(teacher.config, img_size=settings.img_size))
    build_model(settings, student, theirs)  # raises if the two do not match
    if settings.parts:
        init_from(student, theirs, settings.parts)
    return settings


# ---- What a run is called, and what it can be compared with ----------------------------------------------------------

# What two runs must share to be compared: the data, and all of the recipe that a baseline has too.
CONDITIONS = (
    "data train_images img_size epochs batch_size lr lr_floor beta2 weight_decay warmup clip layer_decay drop_path "
    "mixup cutmix erasing smoothing ema augment randaugment"
).split()


def conditions_of(settings: Settings) -> tuple[tuple[str, Any, Any], ...]:
    """Of what runs must share: name, value, and what else to compare: "as published" where the run's recipe has it.

    So runs of published recipes can be compared, though each method has a recipe of its own.
    """
    recipe, conditions = recipe_of(settings), []
    for name in CONDITIONS:
        value = getattr(settings, name)
        is_published = recipe and name in OF_RECIPES and value == recipe.get(name, getattr(Settings, name))
        conditions.append((name, value, "as published" if is_published else value))
    return tuple(conditions)


def variant(settings: Settings) -> list[str]:
    """The settings of a run's method that are not the usual ones, as name=value."""
    words = []
    for name in VARIANTS:
        usual = usual_blocks(settings) if name == "blocks" else getattr(Settings, name)
        if getattr(settings, name) != usual:
            words.append(f"{name}={getattr(settings, name)}")
    return words


def run_name(settings: Settings) -> str:
    """The name of a run's folder: what is run, and which variant of it."""
    words = [settings.teacher_title.replace(" ", ""), Path(settings.data).name, settings.title]
    if settings.student != "standard":
        words.append(settings.student)
    return "-".join([*words, *variant(settings), f"seed{settings.seed}"]).replace(",", "+")


def read_settings(folder: str | Path) -> Settings:
    """The settings of a run on disk."""
    try:
        return Settings(**runs.read_config(folder)["settings"])
    except TypeError as error:
        raise UserError(
            f"{folder} is of another version of this project ({error}); move it, or train --fresh"
        ) from error


def result_of(folder: str | Path) -> Result:
    """A finished run on disk as a table sees it."""
    if "exercise" in runs.read_config(folder):
        raise UserError(f"{folder} had a learner's function in it, without which its student is another one")
    settings, result = read_settings(folder), runs.read_result(folder)
    family = find(settings.teacher).family
    words = [settings.student, settings.title, *variant(settings)]  # as "native distill loss=js"
    return Result(
        place=(list(FAMILIES).index(family), list(TEACHERS).index(settings.teacher)),
        family=FAMILIES[family].title,
        teacher=settings.teacher,
        title=settings.teacher_title,
        conditions=conditions_of(settings),
        column=" ".join(words).removeprefix("standard "),
        seed=settings.seed,
        top1=result.get("ema_top1", result["top1"]),
        teacher_top1=result.get("teacher_top1"),
    )


# ---- What a run is built of ------------------------------------------------------------------------------------------


def build_teacher(settings: Settings) -> ViT:
    """The teacher of a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an untrained teacher, `--weights random`, is the same at every call
        return load_teacher(settings.teacher, settings.weights, settings.img_size, settings.teacher_seed)


def build_data(settings: Settings) -> Data:
    """The data set of a run, at its size and with its teacher's normalisation."""
    where = settings.data, settings.data_root, settings.img_size, find(settings.teacher).normalisation
    return load_data(*where, settings.train_images, settings.augment, settings.randaugment, settings.erasing)


def build_model(settings: Settings, student: ViT, teacher: ViT | None) -> nn.Module:
    """What is trained and evaluated: the student alone, or with its teacher."""
    if settings.method is None:
        return student
    blocks = parse_blocks(settings.blocks)
    return AttentionTransfer(student, teacher, settings.method, blocks, settings.what, settings.loss)


def build_student(settings: Settings, classes: int, teacher: ViT | None) -> ViT:
    """A student with random weights that follow from the run's seed, or with parts of the teacher's."""
    torch.manual_seed(settings.seed)
    config = student_config(settings.teacher, settings.student, classes, settings.img_size)
    student = ViT(replace(config, drop_path=settings.drop_path))  # of the student; the teacher leaves out the same
    if settings.parts:
        init_from(student, teacher, settings.parts)
    if settings.mode == "finetune":  # the new head says next to nothing at first, as in MAE's code
        nn.init.normal_(student.head.weight, std=2e-5)
    return student


class Training:
    """What a run is built of: its data, its models, its optimiser, and what else changes from step to step."""

    def __init__(self, settings: Settings, data: Data, teacher: ViT | None, processes: Processes) -> None:
        self.settings, self.data, self.processes, self.device = settings, data, processes, processes.device
        self.steps = settings.epochs * len(plan_epoch(len(data.train), settings.batch_size, 0, 0, processes.world))
        self.teacher = None if teacher is None else teacher.to(self.device)
        self.student = build_student(settings, len(data.classes), teacher).to(self.device)
        self.module = self.model = build_model(settings, self.student, self.teacher)
        self.average = None
        if settings.ema:
            self.average = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        if settings.compile:
            self.student.compile()  # in place: its parameters keep their names
        if processes.world > 1:
            # Copying leaves the student's q and k without gradients.
            copies = settings.method == "copy"
            self.model = nn.parallel.DistributedDataParallel(self.module, find_unused_parameters=copies)
            self.model.broadcast_buffers = False  # they are constants, the same in all processes

        self.peak = settings.lr * settings.batch_size / 256  # the highest learning rate
        from_head = settings.mode == "finetune"
        groups = parameter_groups(self.student, self.peak, settings.weight_decay, settings.layer_decay, from_head)
        self.optimiser = torch.optim.AdamW(groups, self.peak, betas=(0.9, settings.beta2), fused=True)
        self.autocast, dtype = mixed_precision(settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.mix = mixing(settings.mixup, settings.cutmix, len(data.classes))
        self.train_images = Loader(data.train, settings.workers, self.device)
        self.val_images = Loader(data.val, settings.workers, self.device)

        # What a checkpoint holds the state of.
        self.parts = {"student": self.student, "optimiser": self.optimiser, "scaler": self.scaler}
        if self.average:
            self.parts["average"] = self.average


# ---- Training --------------------------------------------------------------------------------------------------------


def train(run: Training, folder: Path, bar: tqdm) -> dict:
    """Trains a student to the end, from the last checkpoint if there is one; writes it, and returns the result."""
    settings, processes, device, data, steps = run.settings, run.processes, run.device, run.data, run.steps
    checkpoint = runs.Checkpoint(folder, run.parts)
    first_epoch, seconds = checkpoint.resume()
    found = {}
    bar.update(steps // settings.epochs * first_epoch)
    for epoch in range(first_epoch, settings.epochs):
        begun, meter = time.perf_counter(), Meter(processes)  # of this epoch
        run.model.train()
        plan = plan_epoch(len(data.train), settings.batch_size, settings.seed, epoch, processes.world)
        own = [batch[processes.rank :: processes.world] for batch in plan]  # what this process gets of each batch
        batches = run.train_images.read(own)  # augmented by the plan's seeds
        for step, (whole_batch, (images, labels)) in enumerate(zip(plan, batches, strict=True), epoch * len(plan)):
            seed_step(settings.seed, step, processes.rank)
            factor = cosine_schedule(step, steps, settings.warmup * len(plan), settings.lr_floor)
            for group in run.optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            images, targets = run.mix(images, labels)  # labels, or shares of classes where images are mixed

            # Forward and backward, piece by piece: gradients add up, and processes exchange them after the last piece.
            for x, y, is_last in split_batch(images, targets, settings.accumulate):
                run.model.require_backward_grad_sync = is_last  # of no effect where there is one process
                with run.autocast():
                    output = run.model(x)
                logits, transfer_loss = output if isinstance(output, tuple) else (output, output.new_zeros(()))
                loss = F.cross_entropy(logits.float(), y, label_smoothing=settings.smoothing)
                loss = loss + settings.weight * transfer_loss.float()
                # Each image weighs the same, in a last, shorter batch too, of which some processes have one image more.
                weight = len(x) * processes.world / len(whole_batch)
                run.scaler.scale(loss * weight).backward()
                meter.add(loss, transfer_loss, logits, y)

            # The update of the weights, and of their moving average.
            scale = run.scaler.get_scale()
            if settings.clip:
                run.scaler.unscale_(run.optimiser)
                nn.utils.clip_grad_norm_(run.student.parameters(), settings.clip)
            run.scaler.step(run.optimiser)
            run.scaler.update()
            run.optimiser.zero_grad()
            was_skipped = run.scaler.get_scale() < scale  # as gradients were too large for float16
            if run.average and not was_skipped:
                run.average.update_parameters(run.student)
            bar.update()
            if step % 10 == 9 or device.type == "cpu":  # on a GPU, to ask is to wait for it
                bar.set_postfix(meter.averages(step), refresh=False)

        # The epoch's line in the log, with what validation finds, and a checkpoint to go on from.
        checkpoint.check_finite(step)
        if run.scaler.get_scale() < 1:  # halved again and again, as no step's gradients fit
            raise not_finite(f"the gradients at step {step} are")
        line = {"epoch": epoch + 1, "step": step + 1, **meter.averages(step), "lr": run.peak * factor}
        spent = time.perf_counter() - begun
        seconds += spent  # of training, before and after stops
        line |= {"images_per_s": len(data.train) / spent, "seconds": seconds}
        if validation_is_due(epoch, settings.epochs, len(data.train), len(data.val)):
            found = validate(run, run.module, step)
            line |= {f"val_{name}": found[name] for name in ("top1", "top5", "loss")}
        if processes.main:
            runs.append_log(folder, line)
            checkpoint.save_if_due(epoch + 1, seconds)
    return finish(run, folder, found, seconds)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds all that is random in a step: drop path, mixup. torch keeps 32 bits of a seed: the three are folded in."""
    torch.manual_seed((seed * 7_368_787 + step * 104_729 + rank) % 2**32)


def split_batch(images: Tensor, targets: Tensor, pieces: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Cuts a batch into pieces to save memory: (images, targets, whether it is the last piece)."""
    both = list(zip(images.chunk(pieces), targets.chunk(pieces), strict=True))  # pieces as even as can be
    for number, (x, y) in enumerate(both, start=1):
        yield x, y, number == len(both)


def validation_is_due(epoch: int, epochs: int, train_images: int, val_images: int) -> bool:
    """Whether to validate after that epoch, counted from 0: after the last one, and else whenever it was earned."""
    # A validation is earned by training on as many images as it has. A forward pass is about a third of a step, so
    # validation adds a third to the time at most.
    earned = (epoch + 1) * train_images // val_images  # so far
    return earned > epoch * train_images // val_images or epoch + 1 == epochs


def validate(run: Training, model: nn.Module, step: int) -> dict[str, float]:
    """Accuracy on the validation set after that step."""
    batch_size, when = min(256, run.settings.batch_size), f" after step {step}"
    return evaluate(model, run.val_images, batch_size, run.processes, autocast=run.autocast, when=when)


def finish(run: Training, folder: Path, found: dict[str, float], seconds: float) -> dict:
    """Writes the student and the result; `found` is what the last validation found, if there was one."""
    last = run.steps - 1  # the step after which this is
    result = found or validate(run, run.module, last)
    result |= {"epochs": run.settings.epochs, "steps": run.steps, "train_seconds": seconds}
    students = {"student": run.student}
    if run.average:
        students["student_ema"] = run.average.module  # a copy of the student with averaged weights
        averaged = validate(run, build_model(run.settings, run.average.module, run.teacher), last)
        result |= {f"ema_{name}": value for name, value in averaged.items()}
    # Where the teacher's task is the student's, its own accuracy says what could be learnt.
    if run.teacher is not None and run.teacher.config.num_classes and run.settings.data == "matching":
        result["teacher_top1"] = validate(run, run.teacher, last)["top1"]
    if run.processes.main:
        for name, student in students.items():
            with replacing(folder / f"{name}.safetensors") as part:
                save_model(student, str(part))
        runs.write_json(folder / "result.json", result)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


# ---- The grid --------------------------------------------------------------------------------------------------------


def main() -> None:
    args = parse_arguments()
    plan = plan_runs(args)
    processes = Processes(plan[0].device)
    folders = [Path(args.out) / run_name(settings) for settings in plan]  # one a run
    launcher = ["torchrun", f"--nproc_per_node={processes.world}"] if processes.world > 1 else ["python"]
    command = shlex.join([*launcher, "train.py", *(word for word in sys.argv[1:] if word != "--fresh")])
    if len(set(folders)) < len(plan):
        raise UserError("two runs of this grid share a folder; use two commands and two --out")
    try:
        waiting, failed = prepare(args, dict(zip(folders, plan, strict=True)), processes), []
        for folder, settings in waiting.items():
            try:
                train_run(settings, folder, processes, command)
            except Exception as error:  # a grid goes on
                if processes.world > 1 or len(waiting) == 1:
                    raise  # other processes would not be here: they wait in the middle of the run
                print(f"error: {folder.name}: {in_a_line(error)}", file=sys.stderr)
                failed.append(folder.name)
    except KeyboardInterrupt:
        if processes.main:
            print(f"\nstopped; go on with: {command}", file=sys.stderr)
        raise
    finished = [folder for folder in folders if folder.name not in failed]
    if processes.main and finished:
        print_tables(compare(list(map(result_of, finished))))
        average = " --ema" if plan[-1].ema else ""  # what the table shows
        print(f"next: python eval.py accuracy {shlex.quote(str(finished[-1]))}{average}")
    if dist.is_initialized():
        dist.destroy_process_group()
    if failed:
        raise UserError(f"{len(failed)} of {len(waiting)} runs failed, as said above: {', '.join(failed)}")


def prepare(args: Namespace, plan: dict[Path, Settings], processes: Processes) -> dict[Path, Settings]:
    """The runs that are to be trained, by folder. Finds what would stop one of them before any is begun."""
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {args.out}: {error.strerror}; choose another --out") from error
    processes.check_same(lambda: list(map(runs.stamps, plan)), args.out)
    waiting = {}
    for folder, settings in plan.items():
        if not args.fresh:
            check_settings(settings, folder)
        if args.fresh or not runs.is_finished(folder):
            waiting[folder] = settings  # not begun, or stopped
        elif processes.main:
            print(f"{folder.name}: finished before; --fresh trains it again")
    # The images of a folder are looked through once, and the teachers fetched into the cache, or missed.
    for name in {settings.data for settings in waiting.values()} - set(DATASETS):
        if processes.main:
            check_images(Path(name))
    needed = {(run.teacher, run.teacher_seed): run for run in waiting.values() if run.needs_teacher}
    for settings in needed.values():
        processes.first(partial(build_teacher, settings))
    for folder in plan if args.fresh else ():  # now that nothing is in the way
        processes.first(partial(runs.clear, folder))
    return waiting


def check_settings(settings: Settings, folder: Path) -> None:
    """Raises a `UserError` if the folder holds a run of other settings."""
    if not (folder / "config.json").is_file():
        return
    theirs, differ = read_settings(folder), []
    for name, ours in asdict(settings).items():
        if name not in INCIDENTAL and ours != getattr(theirs, name):
            differ.append(f"{name} {getattr(theirs, name)} there and {ours} here")
    if differ:
        remedy = "start over with --fresh, or choose another --out"
        raise UserError(f"{folder} holds a run with other settings: {'; '.join(differ)}; {remedy}")


def train_run(settings: Settings, folder: Path, processes: Processes, command: str) -> None:
    """One run of the grid, from its data to its result."""
    data = processes.first(partial(build_data, settings))  # it may have to be downloaded
    run = Training(settings, data, build_teacher(settings) if settings.needs_teacher else None, processes)
    begin(run, folder, command)
    if processes.main:
        images = f"{len(data.train):,} training images, {len(data.val):,} held out, {len(data.classes)} classes"
        print(f"{folder.name}: {images}; {settings.epochs} epochs, recipe {settings.recipe}, on {run.device}")
    with tqdm(total=run.steps, desc=folder.name, unit="step", disable=not processes.main) as bar:
        result = train(run, folder, bar)
    if processes.main:
        average = f"; top-1 of the moving average {result['ema_top1']:.1f}" if "ema_top1" in result else ""
        figures = f"top-1 {result['top1']:.1f}, top-5 {result['top5']:.1f} on {result['n']:,} images"
        print(f"{folder.name}: {figures}{average}")


def begin(run: Training, folder: Path, command: str) -> None:
    """Writes config.json, or raises a `UserError` if the one that is there is not of this run."""
    config = {
        "settings": asdict(run.settings),
        "student": asdict(run.student.config),
        "classes": run.data.classes,
        "images": [len(run.data.train), len(run.data.val)],
        "steps": run.steps,
        "processes": run.processes.world,
        "teacher": fingerprint(run.teacher) if run.teacher else None,
        "command": command,
        "versions": {"torch": torch.__version__, "commit": runs.code_commit()},
    }
    if (folder / "config.json").is_file():
        held = runs.read_config(folder)
        for name in ("classes", "images", "steps", "processes", "teacher"):
            if held[name] != config[name]:
                remedy = "go on with what it began with, or start over with --fresh"
                raise UserError(f"{folder} began with other data, processes or weights (other {name}); {remedy}")
    if run.processes.main:  # what may differ, such as the precision, as it is now
        runs.write_json(folder / "config.json", config)
    run.processes.check_same(partial(runs.stamps, folder), folder)


if __name__ == "__main__":
    answer_mistakes(main)
