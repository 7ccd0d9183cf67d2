"""Trains students: with a teacher's attention (transfer), without (baseline), or from a teacher's weights (finetune).

    python train.py                                          # a small (nano) teacher that is pretrained here
    python train.py --teacher eva02_s --mode transfer        # a real teacher: downloads its weights and Imagenette
    torchrun --nproc_per_node=8 train.py --teacher ...       # several GPUs

Several values of --teacher, --data, --mode, --method, --student or --seed make a grid of runs, one after another. Each
run has a folder. The same command resumes a run that was stopped, and skips one that is finished.

Read this file after transfer.py: first `Settings`, then `Training`, the objects of a run, and `train`, the loop.
"""

import itertools
import math
import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model import ViT, layer_of
from support import data, runs, tables
from support.arguments import Parser, add_flags, flag, names_of, words_of
from support.errors import UserError, answer_mistakes, in_a_line, not_finite
from support.processes import Processes, spare_cores
from support.schedule import average_decay, cosine_schedule
from teachers import find_teacher, fingerprint, kept_at, load_teacher, name_components, place_of, student_config
from transfer import LOSSES, METHODS, WHAT, AttentionTransfer, StudentAlone, choose_parts, init_from, name_blocks

# ---- Settings and recipes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on. Each field is a flag of the command line, with its role, default and help.

    The default values are the default recipe, which is quick. None stands for the default that the help describes.
    """

    # These say what to run. A command may give several values for most of them, and trains each combination.
    teacher: str = flag(
        "run", "deit_nano", "The ID of the teacher; `python teachers.py` lists all.", nargs="+", metavar="ID"
    )
    teacher_seed: int = flag("run", 0, "The seed for pretraining a nano teacher.", high=1000, nargs="+")
    seed: int = flag("run", 0, "The seed for initial weights, data order and augmentation.", high=2**32 - 1, nargs="+")
    data: str | None = flag(
        "data",
        None,
        f"A data set ({', '.join(data.DATASETS)}) or the path of a folder with one subfolder per class. If a data set "
        "has the same name, write the path with a slash. matching is computed here and is the default for nano "
        "teachers; imagenette is the default for other teachers.",
        nargs="+",
    )
    mode: str | None = flag(
        "run",
        None,
        "Train without a teacher (baseline), with a teacher's attention (transfer) or from its weights (finetune). "
        "Default: baseline and transfer.",
        choices=("baseline", "transfer", "finetune"),
        nargs="+",
    )
    student: str = flag(
        "run",
        "standard",
        "A plain ViT (standard), or one with the teacher's native components: all (native) or a comma list of them.",
        nargs="+",
    )
    method: str | None = flag("run", "distill", "Copy the maps, or match them with a loss.", choices=METHODS, nargs="+")
    weights: str | None = flag(
        "run",
        None,
        "The teacher's file, or 'random'. Of several models in a file, FILE:WORD takes the one whose names have WORD. "
        "Default: as published.",
        metavar="PATH",
    )

    # These choose the data.
    train_images: int | None = flag("data", None, "Train on N images, class-balanced. Default: all (matching: 500).", 1)
    img_size: int | None = flag("data", None, "The images' side in pixels. Default: the teacher's (DINOv2: 224).", 1)
    augment: bool = flag("data", True, "Crop and flip the training images at random (matching: never).")

    # These vary attention transfer.
    what: str | None = flag(
        "variant", "map", "Transfer attention maps, or q, k, v or the layer's output.", choices=WHAT, used_by=METHODS
    )
    loss: str | None = flag("variant", "cross_entropy", "The loss between maps.", choices=LOSSES, used_by=["distill"])
    weight: float = flag("variant", 3.0, "The weight of the distillation loss in the total loss.", used_by=["distill"])
    blocks: str | None = flag(
        "variant",
        None,
        "Transfer the first N blocks (9), a range (3-8) or a list (0,4,8), counted from 0. Default: all; to distill "
        "from a published teacher, the first three quarters.",
        used_by=METHODS,
    )
    init: str | None = flag(
        "variant",
        None,
        "Start from parts of the teacher's weights: a comma list of attention, mlp, norms, embeddings; or all.",
        used_by=["baseline", *METHODS],
    )

    # These are the recipe.
    recipe: str = flag(
        "run", "desk", "Use the default values shown here (desk) or published ones (paper).", choices=("desk", "paper")
    )
    epochs: int = flag("recipe", 50, "The number of passes over the training images.", 1)
    batch_size: int = flag("recipe", 128, "The number of images per step, over all processes.", 1)
    lr: float | None = flag(
        "recipe",
        None,
        "The peak learning rate at --batch-size 256, scaled in proportion to it. Default: 0.006 for nano teachers, "
        "otherwise 0.0005.",
    )
    lr_floor: float = flag("recipe", 0.0, "The final learning rate as a share of the peak.", high=1)
    beta2: float = flag("recipe", 0.98, "AdamW's beta2; its beta1 is 0.9.", high=0.999999)
    weight_decay: float = flag("recipe", 0.05, "The weight decay of matrices; biases, norms and tokens have none.")
    warmup: float | None = flag("recipe", None, "The number of warm-up epochs. Default: a tenth of the epochs.")
    clip: float = flag("recipe", 1.0, "The global norm to which gradients are clipped; 0 is off.")
    layer_decay: float = flag("recipe", 1.0, "A block's learning rate relative to the next block's; 1 is off.", 1e-3, 1)
    drop_path: float = flag("recipe", 0.0, "The rate of stochastic depth (arXiv 1603.09382).", high=0.999999)
    mixup: float = flag("recipe", 0.0, "The alpha of mixup (arXiv 1710.09412); 0 is off.")
    cutmix: float = flag("recipe", 0.0, "The alpha of CutMix (arXiv 1905.04899); 0 is off.")
    randaugment: float = flag("recipe", 0.0, "The magnitude of RandAugment (arXiv 1909.13719); 0 is off.", high=10)
    erasing: float = flag("recipe", 0.0, "The probability of random erasing (arXiv 1708.04896).", high=1)
    smoothing: float = flag("recipe", 0.0, "Label smoothing: the share spread over all classes.", high=0.999999)
    ema: float = flag("recipe", 0.0, "The decay of a moving average of the weights; 0 is off.", high=0.999999)

    # These depend on the machine.
    data_root: str = flag("machine", "data", "The folder in which data sets are found and stored.", metavar="DIR")
    workers: int | None = flag("machine", None, "N processes decode images. Default: cores, at most 16 (matching: 0).")
    accumulate: int = flag("machine", 1, "Split each batch into N pieces to save memory.", 1)
    validate_every: int | None = flag("machine", None, "Validate every N epochs. Default: a tenth of the epochs.", 1)
    checkpoint_every: int | None = flag(
        "machine", None, "Write a checkpoint every N epochs, to resume from. Default: about every 10,000 images.", 1
    )
    device: str = flag("machine", "auto", "The device: cpu, cuda, cuda:1, or auto (cuda if available, otherwise cpu).")
    amp: str = flag(
        "machine", "auto", "Mixed precision; auto is bf16 or fp16 on CUDA.", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = flag("machine", False, "Compile the student with torch.compile.")

    @property
    def needs_teacher(self) -> bool:
        """Whether a run needs the teacher's weights. A baseline needs only its shape."""
        return self.mode != "baseline" or bool(self.init)


# These are the recipes of Li et al. (arXiv 2411.09702), as in their public code, where they differ from the default
# recipe. Fine-tuning uses MAE's (arXiv 2111.06377), for ViT-B and ViT-L.
PAPER = dict(clip=0.0, mixup=0.8, cutmix=1.0, erasing=0.25, randaugment=9.0, smoothing=0.1)
TRANSFER = PAPER | dict(batch_size=2048, ema=0.9999)
FINETUNE = PAPER | dict(batch_size=1024, beta2=0.999, warmup=5.0)
COPY = dict(epochs=100, lr=1e-3, lr_floor=0.25, beta2=0.999, warmup=5.0, layer_decay=0.75)
DISTILL = dict(epochs=200, lr=1e-4, lr_floor=0.00125, beta2=0.95, warmup=20.0, weight_decay=0.3, drop_path=0.2)
RECIPES = {
    "copy": TRANSFER | COPY,
    "distill": TRANSFER | DISTILL,
    "finetune": FINETUNE | dict(epochs=100, lr=5e-4, lr_floor=0.0005, layer_decay=0.65, drop_path=0.1),
    "finetune L": FINETUNE | dict(epochs=50, lr=1e-3, lr_floor=0.00025, layer_decay=0.75, drop_path=0.2),
}


def published_recipe(settings: Settings) -> dict:
    """Returns the published recipe for what is run, or nothing for the default recipe: `Settings` holds that one."""
    if settings.recipe == "desk":
        return {}
    if settings.mode == "finetune":
        is_large = find_teacher(settings.teacher).config.depth == 24
        return RECIPES["finetune L" if is_large else "finetune"]
    # A baseline uses the distillation recipe.
    return RECIPES[settings.method if settings.mode == "transfer" else "distill"]


# ---- What a run is built of ------------------------------------------------------------------------------------------


def build_teacher(settings: Settings) -> ViT:
    """Returns the teacher of a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # An untrained teacher (`--weights random`) is the same in every call.
        return load_teacher(settings.teacher, settings.weights, settings.img_size, settings.teacher_seed)


def build_data(settings: Settings) -> data.Data:
    """Returns the data set of a run, at its image size and with its teacher's normalisation."""
    where = settings.data, settings.data_root, settings.img_size, find_teacher(settings.teacher).normalisation
    return data.load_data(*where, settings.train_images, settings.augment, settings.randaugment, settings.erasing)


def build_student(settings: Settings, classes: int, teacher: ViT | None) -> ViT:
    """Returns a student. The run's seed determines its random weights; some weights may be the teacher's instead."""
    torch.manual_seed(settings.seed)
    config = student_config(settings.teacher, settings.student, classes, settings.img_size)
    student = ViT(replace(config, drop_path=settings.drop_path))
    if settings.mode == "finetune":
        init_from(student, teacher, "all")
        nn.init.normal_(student.head.weight, std=2e-5)  # As in MAE's code, the new head's outputs start near 0.
    elif settings.init:
        init_from(student, teacher, settings.init)
    return student


def build_model(settings: Settings, student: ViT, teacher: ViT | None) -> nn.Module:
    """Returns the model to train and evaluate, with or without a teacher: images to (logits, transfer loss)."""
    if settings.method is None:
        return StudentAlone(student)
    return AttentionTransfer(student, teacher, settings.method, settings.blocks, settings.what, settings.loss)


def parameter_groups(student: ViT, settings: Settings) -> list[dict]:
    """Groups the student's parameters by weight decay and by `peak`, the highest learning rate that they reach.

    With layer decay, the learning rate shrinks by that factor from each block to the one before. The last block has the
    full rate, as in the code of arXiv 2411.09702; in fine-tuning, only what follows the blocks has it, as in MAE's.
    """
    groups = {}
    depth, peak = student.config.depth, settings.lr * settings.batch_size / 256
    full = depth + 1 if settings.mode == "finetune" else depth  # From this layer on, parameters have the full rate.
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = peak * settings.layer_decay ** max(0, full - layer_of(name, depth))
        # Matrices decay; norms, biases, LayerScale, tokens and positions do not. In a block that copies maps, the
        # rows of q and k in `qkv.weight` get zeros as gradients, so AdamW's weight decay still shrinks them. `q_norm`,
        # `k_norm` and its table of relative positions get None, so they stay as they are.
        is_matrix = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed", "bias_table"))
        decay = settings.weight_decay if is_matrix else 0.0
        group = groups.setdefault((rate, decay), dict(params=[], peak=rate, weight_decay=decay))
        group["params"].append(parameter)
    return list(groups.values())


def mixed_precision(amp: str, device: torch.device) -> tuple[Callable, torch.dtype | None]:
    """Returns a function that makes autocast contexts, and their dtype (None: float32).

    Products in float32 are in full precision. Under autocast, only the loss has such products.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # Otherwise the patch convolution would use it.
    if amp == "auto" and device.type == "cuda":
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    return partial(torch.autocast, device.type, dtype, enabled=dtype is not None), dtype


class Training:
    """The objects of a run: its data, its models, its optimiser, and whatever else changes from step to step.

    `join` makes a model of student and teacher, as `build_model` does. To train another model, pass another function.
    """

    def __init__(
        self,
        settings: Settings,
        images: data.Data,
        student: ViT,
        teacher: ViT | None,
        processes: Processes,
        join: Callable = build_model,
    ) -> None:
        self.settings, self.data, self.processes, self.device = settings, images, processes, processes.device
        self.student, self.teacher = student.to(self.device), None if teacher is None else teacher.to(self.device)
        self.join, self.model = join, join(settings, self.student, self.teacher)
        self.average = AveragedModel(self.student) if settings.ema else None
        if settings.compile:
            self.student.compile()  # This compiles in place, so parameters keep their names.
        if processes.world > 1:
            # Copying can leave q_norm, k_norm and tables of positions without gradients. Buffers are constants.
            copies = settings.method == "copy"
            self.model = nn.parallel.DistributedDataParallel(
                self.model, find_unused_parameters=copies, broadcast_buffers=False
            )

        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.student, settings), betas=(0.9, settings.beta2), fused=True
        )
        self.autocast, dtype = mixed_precision(settings.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.mix = data.mixing(settings.mixup, settings.cutmix, len(images.classes))
        self.train_images = data.Loader(images.train, settings.workers, self.device)
        self.val_images = data.Loader(images.val, settings.workers, self.device)

        count, world = len(images.train), processes.world
        self.steps = settings.epochs * len(data.plan_epoch(count, settings.batch_size, 0, 0, world))
        self.checkpoint_every = settings.checkpoint_every or math.ceil(10_000 / count)
        self.keepers = {"student": self.student, "optimiser": self.optimiser, "scaler": self.scaler}
        if self.average:
            self.keepers["average"] = self.average


# ---- Training --------------------------------------------------------------------------------------------------------


def train(run: Training, folder: Path, bar: tqdm) -> dict:
    """Trains a student to the end, from the last checkpoint if there is one, writes it, and returns the result."""
    settings, processes, count = run.settings, run.processes, len(run.data.train)
    checkpoint = runs.Checkpoint(folder, run.keepers)
    first_epoch, seconds = checkpoint.resume()
    found = {}
    bar.update(run.steps // settings.epochs * first_epoch)
    for epoch in range(first_epoch, settings.epochs):
        start, meter = time.perf_counter(), Meter(processes)
        run.model.train()
        plan = data.plan_epoch(count, settings.batch_size, settings.seed, epoch, processes.world)
        own = [batch[processes.rank :: processes.world] for batch in plan]  # Each process reads its share of a batch.
        batches = run.train_images.read(own)
        for step, (batch, (images, labels)) in enumerate(zip(plan, batches, strict=True), epoch * len(plan)):
            # Seed, step and rank determine all randomness in a step. torch keeps 32 bits of a seed, hence the modulo.
            torch.manual_seed((settings.seed * 7_368_787 + step * 104_729 + processes.rank) % 2**32)
            factor = cosine_schedule(step, run.steps, settings.warmup * len(plan), settings.lr_floor)
            for group in run.optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            images, targets = run.mix(images, labels)

            # Forward and backward run piece by piece. Gradients add up; processes exchange them after the last piece.
            pieces = list(zip(images.chunk(settings.accumulate), targets.chunk(settings.accumulate), strict=True))
            for number, (x, y) in enumerate(pieces, start=1):
                run.model.require_backward_grad_sync = number == len(pieces)  # Only DDP uses this.
                with run.autocast():
                    logits, transfer_loss = run.model(x)
                loss = F.cross_entropy(logits.float(), y, label_smoothing=settings.smoothing)
                loss = loss + settings.weight * transfer_loss.float()
                # Processes average gradients. With the factor `world`, each image counts 1 / len(batch) in any process.
                share = len(x) * processes.world / len(batch)
                run.scaler.scale(loss * share).backward()
                meter.add(loss, transfer_loss, logits, y)

            # This updates the weights and their moving average. The scaler skips it if gradients overflow float16.
            scale = run.scaler.get_scale()
            if settings.clip:
                run.scaler.unscale_(run.optimiser)
                nn.utils.clip_grad_norm_(run.student.parameters(), settings.clip)
            run.scaler.step(run.optimiser)
            run.scaler.update()
            run.optimiser.zero_grad()
            was_skipped = run.scaler.get_scale() < scale
            if run.average and not was_skipped:
                run.average.multi_avg_fn = get_ema_multi_avg_fn(average_decay(step, run.steps, settings.ema))
                run.average.update_parameters(run.student)
            bar.update()
            if step % 10 == 9 or run.device.type == "cpu":  # Reading the averages waits for the GPU.
                bar.set_postfix(meter.averages(step), refresh=False)

        # This writes the epoch's line of the log, with what validation finds, and a checkpoint to resume from.
        checkpoint.check_finite(step)
        if run.scaler.get_scale() < 1:  # It was halved again and again: no step's gradients fit float16.
            raise not_finite(f"the gradients at step {step} are")
        spent = time.perf_counter() - start
        seconds += spent
        is_last, rate = epoch + 1 == settings.epochs, max(group["lr"] for group in run.optimiser.param_groups)
        line = {"epoch": epoch + 1, "step": step + 1, **meter.averages(step), "lr": rate}
        line |= {"images_per_s": count / spent, "seconds": seconds}
        if is_last or (epoch + 1) % settings.validate_every == 0:
            found = validate(run, run.model, step)
            line |= {f"val_{name}": found[name] for name in ("top1", "top5", "loss")}
        if processes.main:
            runs.append_log(folder, line)
            if is_last or (epoch + 1) % run.checkpoint_every == 0:
                checkpoint.save(epoch + 1, seconds)
    return finish(run, folder, found, seconds)


def finish(run: Training, folder: Path, found: dict, seconds: float) -> dict:
    """Writes the student and the result. `found` is empty if the run was stopped after its last epoch."""
    last_step = run.steps - 1
    result = found or validate(run, run.model, last_step)
    result |= {"epochs": run.settings.epochs, "steps": run.steps, "train_seconds": seconds}
    if run.average:
        averaged = validate(run, run.join(run.settings, run.average.module, run.teacher), last_step)
        result |= {f"ema_{name}": value for name, value in averaged.items()}
    # If teacher and student have the same task, the teacher's accuracy shows what could be learnt.
    if run.teacher is not None and run.teacher.config.num_classes and run.settings.data == "matching":
        result["teacher_top1"] = validate(run, StudentAlone(run.teacher), last_step)["top1"]
    if run.processes.main:
        runs.write_student(folder / "student.safetensors", run.student)
        if run.average:
            runs.write_student(folder / "student_ema.safetensors", run.average.module)
        runs.write_json(folder / "result.json", result)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


class Meter:
    """Averages over the images of an epoch, in all processes."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = torch.zeros(4, device=processes.device)  # loss, transfer loss, correct answers, images

    @torch.no_grad()
    def add(self, loss: Tensor, transfer_loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        # If images are mixed, the correct answer is the label with the larger share.
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        right, count = (logits.argmax(1) == labels).sum().float(), loss.new_full((), len(labels))
        self.sums += torch.stack((loss * count, transfer_loss.float() * count, right, count))

    def averages(self, step: int) -> dict:
        """Returns the averages so far. Raises a `UserError`, which names the step, if a loss was not finite."""
        loss, transfer_loss, right, images = self.processes.sum(self.sums).tolist()
        if not math.isfinite(loss):
            raise not_finite(f"the loss at step {step} is")
        return {"loss": loss / images, "transfer_loss": transfer_loss / images, "top1": 100 * right / images}


# ---- Validation ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: data.Loader,
    batch_size: int,
    processes: Processes,
    classes: list | slice = slice(None),
    autocast: Callable = nullcontext,
    when: str = "",
) -> dict:
    """Returns accuracy in percent (top1, top5), the mean loss, the number n of images, and images_per_s.

    The model turns images into (logits, transfer loss) and is left in eval mode. `classes` selects the logits that take
    part. The processes divide the images, so that each counts once, and add up their results. Raises a `UserError`,
    which says `when`, if the loss is not finite.
    """
    start = time.perf_counter()
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # correct at top-1, correct among the top 5, loss, images
    batches = data.in_order(len(loader.dataset), batch_size, processes.rank, processes.world)
    bar = partial(tqdm, desc="validation", total=len(batches), leave=False, delay=1, disable=not processes.main)
    for images, labels in bar(loader.read(batches)):
        with autocast():
            logits, _ = model(images)
        logits = logits.float()[:, classes]
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack((right[:, 0].sum(), right.any(1).sum(), loss, loss.new_tensor(len(labels)))).cpu()
    top1, top5, loss, n = processes.sum(sums).tolist()
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        raise not_finite(f"the loss on held-out images{when} is")
    return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": loss / n, "n": int(n), "images_per_s": n / seconds}


def validate(run: Training, model: nn.Module, step: int) -> dict:
    """Evaluates a model on the held-out images after this step."""
    batch_size, when = min(256, run.settings.batch_size), f" after step {step}"
    return evaluate(model, run.val_images, batch_size, run.processes, autocast=run.autocast, when=when)


# ---- The command line and the grid -----------------------------------------------------------------------------------


def parse_arguments(words: list | None = None) -> Namespace:
    parser = Parser(description=__doc__.rpartition("\n\n")[0])  # The last paragraph is for readers of this file.
    add_flags(parser, Settings)
    parser.add_argument(
        "--out", default="runs", metavar="DIR", help="The folder that holds the folders of the runs. Default: runs."
    )
    parser.add_argument(
        "--list", action="store_true", help="Print the commands of the runs that are not finished, and train none."
    )
    parser.add_argument("--fresh", action="store_true", help="Start the runs of this command over, even finished ones.")
    return parser.parse_args(words)


def typed_settings(args: Namespace) -> dict:
    """Returns the settings that were typed, without the flags that do not belong to a single run."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "fresh", "list")}


def plan_runs(args: Namespace) -> list[Settings]:
    """Returns the settings of every run that the command asks for, complete and checked, in the order of the runs."""
    typed = typed_settings(args)
    grid = [field for field in fields(Settings) if "nargs" in field.metadata]
    several = {field.name: typed.pop(field.name, [field.default]) for field in grid}
    if several["mode"] == [None]:
        several["mode"] = ["baseline", "transfer"]
    if typed.get("weights", "random") != "random" and len(set(several["teacher"])) > 1:
        raise UserError("--weights is the file of one teacher, not of several; give one --teacher")
    plan = []
    for values in itertools.product(*several.values()):
        asked = Settings(**typed, **dict(zip(several, values, strict=True)))
        # The recipe depends on what is run. A flag that was typed overrides it.
        with_recipe = replace(asked, **published_recipe(asked))
        settings = complete(replace(with_recipe, **typed))
        if settings not in plan:  # A baseline is the same for all methods.
            if settings.seed == several["seed"][0]:  # The shapes are the same for all seeds.
                check_shapes(settings)
            plan.append(settings)
    return plan


def complete(settings: Settings) -> Settings:
    """Fills in settings that were left out and resets unused ones. Raises a `UserError` if the run is impossible."""
    teacher = find_teacher(settings.teacher)
    is_real = bool(teacher.url)
    name = data.one_name(settings.data or ("imagenette" if is_real else "matching"))
    if name == "imagenet":
        data.find_folder(name, settings.data_root)  # This raises a `UserError` if there is none.
    if settings.teacher_seed and (is_real or settings.weights):
        raise UserError("--teacher-seed is for nano teachers that are pretrained here; leave it out")

    # Settings that the run does not use are reset to their defaults, so that the run's name does not show them.
    method = settings.method if settings.mode == "transfer" else None
    kind = method or settings.mode
    unused = [field.name for field in fields(settings) if kind not in field.metadata.get("used_by", [kind])]
    if not settings.needs_teacher:
        unused += ["weights", "teacher_seed"]
    if name == "matching":
        unused += ["augment"]
    if name == "matching" or not settings.augment:
        unused += ["randaugment", "erasing"]
    settings = replace(settings, **{name: getattr(type(settings), name) for name in unused})

    # Settings that were left out get their usual values. Settings that can be typed in several ways get one form.
    depth = teacher.config.depth
    usual_blocks = depth * 3 // 4 if method == "distill" and is_real else depth
    weights = settings.weights
    if weights and weights != "random":
        weights = os.path.abspath(weights)  # A link stays: its target may be apart from an index's other files.
    usual_workers = 0 if name == "matching" else spare_cores()  # Its images need no decoding.
    usual_lr = 5e-4 if is_real else 6e-3
    settings = replace(
        settings,
        data=name,
        data_root=str(Path(settings.data_root).resolve()),
        train_images=settings.train_images or (data.MATCHING if name == "matching" else None),
        method=method,
        student=name_components(settings.teacher, settings.student),
        weights=weights,
        img_size=settings.img_size or teacher.img_size,
        blocks=name_blocks(settings.blocks or usual_blocks, depth),
        init=settings.init and ",".join(choose_parts(settings.init)),
        lr=usual_lr if settings.lr is None else settings.lr,
        warmup=settings.epochs / 10 if settings.warmup is None else settings.warmup,
        workers=usual_workers if settings.workers is None else settings.workers,
        validate_every=settings.validate_every or max(1, settings.epochs // 10),
    )
    if settings.warmup >= settings.epochs:
        raise UserError(f"a warm-up of {settings.warmup:g} epochs leaves none of {settings.epochs}; lower --warmup")

    return settings


def check_shapes(settings: Settings) -> None:
    """Raises a `UserError` if student and teacher do not match. It builds them on the meta device, without memory."""
    config = replace(find_teacher(settings.teacher).config, img_size=settings.img_size)
    with torch.device("meta"):
        theirs = ViT(config, initialise=False)
        build_model(settings, build_student(settings, 2, theirs), theirs)


def made_of(settings: Settings, processes: Processes, prints: dict) -> dict:
    """Returns what a run is made of, to identify it later: settings, fingerprints (`prints`) and the machine's part."""
    _, dtype = mixed_precision(settings.amp, processes.device)
    machine = {"precision": str(dtype or torch.float32).removeprefix("torch."), "processes": processes.world}
    return describe(settings)["made_of"] | prints | machine | {"threads": str(torch.get_num_threads())}


def describe(settings: Settings) -> dict:
    """Returns the name of a run, and what tables must know about it, for its config.json."""
    without = {name: getattr(type(settings), name) for name in names_of(settings, "variant")}
    usual = complete(replace(settings, **without))
    return runs.describe(settings, usual, published_recipe(settings), *place_of(settings.teacher))


def main() -> None:
    args = parse_arguments()
    plan = plan_runs(args)
    folders = [Path(args.out) / describe(settings)["name"] for settings in plan]
    if len(set(folders)) < len(plan):
        raise UserError("two runs of this grid share a folder; use two commands and two --out")
    if args.list:
        return list_commands(args, dict(zip(folders, plan, strict=True)))
    processes = Processes(plan[0].device)
    command = shlex.join([*processes.launcher(), "train.py", *(word for word in sys.argv[1:] if word != "--fresh")])
    try:
        waiting, failed = prepare(args, dict(zip(folders, plan, strict=True)), processes), []
        for folder, settings in waiting.items():
            try:
                train_run(settings, folder, processes, command)
            except Exception as error:
                # A grid continues with its next run, unless other processes still wait in the middle of this one.
                if processes.world > 1 or len(waiting) == 1:
                    raise
                print(f"error: {folder.name}: {in_a_line(error)}", file=sys.stderr)
                failed.append(folder.name)
    except KeyboardInterrupt:
        if processes.main:
            print(f"\nstopped; resume with: {command}", file=sys.stderr)
        raise
    finished = [folder for folder in folders if runs.is_finished(folder) and folder.name not in failed]
    if processes.main and finished:
        tables.print_tables(tables.compare(list(map(tables.result_of, finished))))
        average = " --ema" if plan[-1].ema else ""  # The table shows the accuracy of the moving average.
        print(f"next: python eval.py accuracy {shlex.quote(str(finished[-1]))}{average}")
    if dist.is_initialized():
        dist.destroy_process_group()
    if failed:
        raise UserError(f"{len(failed)} of {len(waiting)} runs failed, as reported above: {', '.join(failed)}")


def list_commands(args: Namespace, plan: dict) -> None:
    """Prints a complete command for each run of the plan (settings by folder) that is not finished."""
    grid = {field.name: field.default for field in fields(Settings) if "nargs" in field.metadata}
    shared = {name: value for name, value in typed_settings(args).items() if name not in grid}
    fresh = ["--fresh"] if args.fresh else []
    if os.environ.get("RANK", "0") != "0":  # Only one of torchrun's processes prints.
        return
    for folder, settings in plan.items():
        if args.fresh or not runs.is_done(folder, describe(settings)["made_of"]):
            own = {name: getattr(settings, name) for name in grid}
            said = [name for name in grid if name in vars(args) or own[name] != grid[name]]
            own = {name: own[name] for name in said if own[name] is not None}
            print(shlex.join(["python", "train.py", *words_of(own | shared), "--out", args.out, *fresh]))


def prepare(args: Namespace, plan: dict, processes: Processes) -> dict:
    """Returns the runs to train, by folder. It finds what would stop any of them before the first one begins."""
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {args.out}: {error.strerror}; choose another --out") from error
    processes.check_same(lambda: list(map(runs.stamps, plan)), args.out)
    done = [] if args.fresh else finished_before(plan, processes)
    waiting = {folder: settings for folder, settings in plan.items() if folder not in done}
    for folder in done if processes.main else ():
        print(f"{folder.name}: finished before; --fresh trains it again")

    # Each folder of images is checked once. Teachers are fetched now, so that a missing one stops the grid early.
    for name in {settings.data for settings in waiting.values()} - set(data.DATASETS):
        if processes.main:
            data.check_images(Path(name))
    needed = {(run.teacher, run.teacher_seed): run for run in waiting.values() if run.needs_teacher}
    for settings in needed.values():
        processes.first(partial(build_teacher, settings))
    for folder in plan if args.fresh else ():  # All checks have passed.
        runs.clear(folder, processes)
    return waiting


def finished_before(plan: dict, processes: Processes) -> list[Path]:
    """Returns the folders whose run is finished. Raises a `UserError` if a folder holds a different run."""
    done = []
    for folder, settings in plan.items():
        if not (folder / "config.json").is_file():
            continue
        prints = {}  # Computed and downloaded images cannot have changed, nor can a teacher that is not on disk yet.
        if settings.data not in data.MADE:
            prints = data.fingerprints(build_data(settings))
        from_file = settings.weights or runs.read_settings(folder, Settings).weights
        if settings.needs_teacher and (from_file or kept_at(settings.teacher, settings.teacher_seed).is_file()):
            prints["teacher_weights"] = fingerprint(build_teacher(settings))
        if runs.is_done(folder, made_of(settings, processes, prints)):
            done.append(folder)
    return done


def train_run(settings: Settings, folder: Path, processes: Processes, command: str) -> None:
    """Trains one run of the grid, from its data to its result, unless another command trains or has finished it."""
    images = processes.first(partial(build_data, settings))  # They may have to be downloaded.
    teacher = build_teacher(settings) if settings.needs_teacher else None
    run = Training(settings, images, build_student(settings, len(images.classes), teacher), teacher, processes)
    with runs.begin(folder, config_of(run, command), processes) as is_left:
        if not is_left:
            return
        if processes.main:
            held_out = f"{len(images.val):,} held out, {len(images.classes)} classes"
            recipe = f"{settings.epochs} epochs, recipe {settings.recipe}, on {run.device}"
            print(f"{folder.name}: {len(images.train):,} training images, {held_out}; {recipe}")
        with tqdm(total=run.steps, desc=folder.name, unit="step", disable=not processes.main) as bar:
            result = train(run, folder, bar)
    if processes.main:
        average = f"; top-1 of the moving average {result['ema_top1']:.1f}" if "ema_top1" in result else ""
        figures = f"top-1 {result['top1']:.1f}, top-5 {result['top5']:.1f} on {result['n']:,} images"
        print(f"{folder.name}: {figures}{average}")


def config_of(run: Training, command: str) -> dict:
    """Returns what a run is made of, and all that tables need to know later, for its config.json."""
    prints = data.fingerprints(run.data) | {"teacher_weights": fingerprint(run.teacher) if run.teacher else None}
    return {
        "settings": asdict(run.settings),
        **describe(run.settings),
        "made_of": made_of(run.settings, run.processes, prints),
        "student": asdict(run.student.config),
        "classes": run.data.classes,
        "command": command,
        "versions": {"torch": torch.__version__, "commit": runs.code_commit()},
    }


if __name__ == "__main__":
    answer_mistakes(main)
