"""Trains students: with a teacher's attention (transfer), without (baseline), or from a teacher's weights (finetune).

    python train.py                                          # a nano teacher, baseline and transfer, in minutes
    python train.py --teacher eva02_s --mode transfer        # a real one
    torchrun --nproc_per_node=8 train.py --teacher ...       # on several GPUs

Several values of --teacher, --data, --mode, --method, --student or --seed make a grid of runs, one after another. Each
run has a folder; a run that was stopped goes on with the same command, one that is finished is not trained again.
"""

import argparse
import itertools
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from data import DATASETS, Data, find_folder, loader
from eval import (
    column_of,
    evaluate,
    pick_device,
    predictor,
    read_result,
    run_data,
    run_teacher,
    teacher_title,
    transfer_of,
    variant,
)
from model import UserError, ViT
from teachers import (
    TEACHERS,
    Arguments,
    answer_mistakes,
    cosine_schedule,
    find,
    number_from,
    one_of,
    replacing,
    student_config,
)
from transfer import LOSSES, METHODS, WHAT, init_from

# ---------------------------------------------------------------------------------------------------------------
# Settings

MODES = ("baseline", "transfer", "finetune")

# A quick recipe for the desk, and those of Li et al. (arXiv 2411.09702) for the two methods. `lr` is for a batch of 256
# and scaled to others.
RECIPES = {
    "desk": dict(
        epochs=50,
        batch_size=128,
        lr=None,
        beta2=0.98,
        weight_decay=0.05,
        warmup=0.1,
        clip=1.0,
        layer_decay=1.0,
        drop_path=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        smoothing=0.0,
        ema=0.0,
    ),
    "copy": dict(
        epochs=100,
        batch_size=2048,
        lr=1e-3,
        beta2=0.999,
        weight_decay=0.05,
        warmup=0.05,
        clip=0.0,
        layer_decay=0.75,
        drop_path=0.0,
        mixup=0.8,
        cutmix=1.0,
        erasing=0.25,
        smoothing=0.1,
        ema=0.0,
    ),
    "distill": dict(
        epochs=200,
        batch_size=2048,
        lr=1e-4,
        beta2=0.95,
        weight_decay=0.3,
        warmup=0.1,
        clip=0.0,
        layer_decay=1.0,
        drop_path=0.2,
        mixup=0.8,
        cutmix=1.0,
        erasing=0.25,
        smoothing=0.1,
        ema=0.9999,
    ),
}
DESK_LR = {"nano": 6e-3, "other": 5e-4}

# What may differ between the command that began a run and the one that goes on with it.
INCIDENTAL = ("device", "amp", "compile", "workers", "data_root")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument_group("what to run (several values make a grid)").add_argument
    add(
        "--teacher",
        nargs="+",
        default=["deit_nano"],
        type=one_of("teacher", TEACHERS),
        metavar="ID",
        help="python teachers.py lists them (deit_nano)",
    )
    add(
        "--mode",
        nargs="+",
        default=["baseline", "transfer"],
        type=one_of("mode", MODES),
        metavar="MODE",
        help="baseline, transfer, finetune (baseline and transfer)",
    )
    add(
        "--method",
        nargs="+",
        default=["distill"],
        type=one_of("method", METHODS),
        metavar="METHOD",
        help="copy, distill (distill)",
    )
    add(
        "--student",
        nargs="+",
        default=["standard"],
        metavar="COMPONENTS",
        help="standard, native, or a comma list of the teacher's components (standard)",
    )
    add(
        "--data",
        nargs="+",
        metavar="DATA",
        help=f"{', '.join(DATASETS)}, or a folder of class folders (matching for nano teachers, imagenette for others)",
    )
    add("--seed", nargs="+", default=[0], type=number_from(int, 0, 2**32 - 1), metavar="N")
    add = parser.add_argument_group("attention transfer").add_argument
    add("--blocks", metavar="BLOCKS", help="how many of the first blocks, a range 3-8, or a list 0,4,8 (all)")
    add("--heads", metavar="HEADS", help="which heads, likewise (all)")
    add("--weight", default=3.0, type=number_from(float, 0), help="of the transfer loss (3)")
    add("--what", default="map", type=one_of("what", WHAT), help="map, q, k; to distill also v, output (map)")
    add("--loss", default="cross_entropy", type=one_of("loss", LOSSES), help=f"{', '.join(LOSSES)} (cross_entropy)")
    add("--temperature", default=1.0, type=number_from(float, 1e-3), help="of both maps in the loss (1)")
    add("--weights", metavar="PATH", help="the teacher's published file; 'random' for an untrained one, as a control")
    add("--init", metavar="PARTS", help="what to take of the teacher's weights: attention, mlp, norms, embeddings, all")
    add = parser.add_argument_group("data").add_argument
    add("--data-root", default="data", help="where data sets are kept (data)")
    add("--train-images", type=number_from(int, 1), metavar="N", help="a fixed, class-balanced subset of so many")
    add("--img-size", type=number_from(int, 1), metavar="PX", help="(the teacher's; 224 for DINOv2)")
    add("--workers", type=number_from(int, 0), help="processes that decode images (one a core; none for matching)")
    add("--no-augment", dest="augment", action="store_false", help="no random crops and flips")
    add("--randaugment", default=0, type=number_from(int, 0, 30), metavar="M", help="magnitude (0, off)")
    add = parser.add_argument_group("recipe (left out: the recipe's value)").add_argument
    add("--recipe", default="desk", type=one_of("recipe", RECIPES), help="desk, copy, distill (desk)")
    add("--epochs", type=number_from(int, 1))
    add("--batch-size", type=number_from(int, 1), help="images a step, over all processes")
    add("--lr", type=number_from(float, 0), help="for a batch of 256; scaled to the batch in use")
    add("--beta2", type=number_from(float, 0, 0.99999))
    add("--weight-decay", type=number_from(float, 0))
    add("--warmup", type=number_from(float, 0, 1), help="share of the steps in which the learning rate rises")
    add("--clip", type=number_from(float, 0), help="largest norm of the gradient (0, off)")
    add(
        "--layer-decay",
        type=number_from(float, 1e-3, 1),
        metavar="FACTOR",
        help="on the learning rate from a block to the one before",
    )
    add("--drop-path", type=number_from(float, 0, 0.99))
    add("--mixup", type=number_from(float, 0), metavar="ALPHA")
    add("--cutmix", type=number_from(float, 0), metavar="ALPHA")
    add("--erasing", type=number_from(float, 0, 1), metavar="P")
    add("--smoothing", type=number_from(float, 0, 0.99))
    add(
        "--ema",
        type=number_from(float, 0, 0.999999),
        metavar="DECAY",
        help="keep a moving average of the weights (0, off)",
    )
    add("--accumulate", default=1, type=number_from(int, 1), metavar="N", help="cut each batch into N, to save memory")
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    add(
        "--amp",
        default="auto",
        type=one_of("amp", ("auto", "bf16", "fp16", "off")),
        help="auto, bf16, fp16, off (auto: bf16 or else fp16 on CUDA, off elsewhere)",
    )
    add("--compile", action="store_true", help="compile the student")
    add("--out", default="runs", metavar="DIR", help="where the folders of the runs are (runs)")
    add("--fresh", action="store_true", help="start over where a run is on disk")
    return parser.parse_args(words)


def grid(args: argparse.Namespace) -> list[dict]:
    """The settings of every run that the command asks for, complete and checked, in the order of the runs."""
    if args.weights not in (None, "random") and len(set(args.teacher)) > 1:
        raise UserError(f"--weights is the file of one teacher, not of {len(set(args.teacher))}; give one --teacher")
    plan = []
    for teacher, seed in itertools.product(args.teacher, args.seed):
        entry = find(teacher)
        for data in args.data or ["matching" if not entry.url else "imagenette"]:
            if data == "imagenet" or data not in DATASETS:
                find_folder(data, args.data_root)  # raises if there is none
            for mode, student in itertools.product(args.mode, args.student):
                for method in args.method if mode == "transfer" else [None]:
                    plan.append(
                        settle(args, teacher=teacher, seed=seed, data=data, mode=mode, student=student, method=method)
                    )
    return plan


def settle(args: argparse.Namespace, **chosen) -> dict:
    """The settings of one run: the recipe's values, the flags over them, and what follows from both."""
    flags = {name: value for name, value in vars(args).items() if name not in ("out", "fresh")}
    recipe = {name: value if flags[name] is None else flags[name] for name, value in RECIPES[args.recipe].items()}
    settings = flags | recipe | chosen
    entry = find(chosen["teacher"])
    if settings["lr"] is None:
        settings["lr"] = DESK_LR["other" if entry.url else "nano"]
    settings["img_size"] = args.img_size or entry.img_size
    if settings["workers"] is None:
        settings["workers"] = 0 if chosen["data"] == "matching" else min(8, os.cpu_count())
    if chosen["mode"] != "transfer":
        settings |= dict(blocks=None, heads=None, weight=0.0, what=None, loss=None, temperature=None)
    elif chosen["method"] == "copy":
        settings |= dict(weight=0.0, loss="cross_entropy", temperature=1.0)
    if chosen["mode"] == "finetune":
        settings["init"] = "all"
    elif chosen["mode"] == "baseline" and not settings["init"]:
        settings["weights"] = None
    check(settings)
    return settings


def check(settings: dict) -> None:
    """Raises a `UserError` if the run cannot be: before any run, and without memory, on the meta device."""
    size = settings["img_size"]
    with torch.device("meta"):
        student = ViT(student_config(settings["teacher"], settings["student"], 2, size))
        if settings["init"]:
            init_from(student, ViT(replace(find(settings["teacher"]).config, img_size=size)), settings["init"])
        if settings["mode"] == "transfer":
            transfer_of(settings, student, None)


def run_name(settings: dict) -> str:
    """A name for the run's folder: what is run, and which variant of it."""
    parts = [
        teacher_title(settings).replace(" ", ""),
        Path(settings["data"]).name,
        settings["method"] or settings["mode"],
    ]
    if settings["student"] != "standard":
        parts.append(settings["student"].replace(",", "+"))
    parts += [setting.replace(",", "+") for setting in variant(settings)]
    return "-".join(parts + [f"seed{settings['seed']}"])


# ---------------------------------------------------------------------------------------------------------------
# Processes


class Processes:
    """The processes of this training: one, or as many as torchrun started. Only the first, `main`, writes."""

    def __init__(self, device: str) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        several = self.world > 1 and device in ("auto", "cuda") and torch.cuda.is_available()
        self.device = pick_device(f"cuda:{local}" if several else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
            torch.set_float32_matmul_precision("high")  # TF32
        if self.world > 1 and not dist.is_initialized():
            # Long enough for the first process to download a data set while the others wait.
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        self.main = self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        return self.rank, self.world

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is raised in any process."""
        if self.world == 1:
            return list(flags)
        return self.sum(torch.tensor(flags, dtype=torch.int32, device=self.device)).bool().tolist()

    def first(self, action: Callable) -> Any:
        """Lets the first process act, e.g. download, before the others do the same and find it done."""
        result = action() if self.main else None
        if self.world > 1:
            dist.barrier()
        return result if self.main else action()


def autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type that matrix products are computed in, or None for float32 throughout."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if amp == "fp16" and device.type != "cuda":
        raise UserError("--amp fp16 needs CUDA; on the CPU use bf16 or off")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


# ---------------------------------------------------------------------------------------------------------------
# Optimiser


def parameter_groups(student: ViT, lr: float, weight_decay: float, layer_decay: float) -> list[dict]:
    """Parameters by learning rate and weight decay.

    Matrices decay; norms, biases, LayerScale, tokens and positions do not. With `layer_decay`, the learning rate
    shrinks by that factor from the head to the last block, and from each block to the one before (ELECTRA, BEiT).
    """
    groups: dict[tuple, dict] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = student.config.depth
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1
        if name.startswith(("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "rel_pos_bias")):
            layer = 0
        decays = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed", "bias_table"))
        scale = layer_decay ** (depth + 1 - layer)
        group = groups.setdefault(
            (scale, decays), dict(params=[], lr=lr * scale, weight_decay=weight_decay if decays else 0.0)
        )
        group["params"].append(parameter)
    return list(groups.values())


def mixing(settings: dict, classes: int) -> Callable | None:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), one of them drawn for each batch."""
    if not (settings["mixup"] or settings["cutmix"]):
        return None
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=settings[name], num_classes=classes)
        for name, kind in (("mixup", v2.MixUp), ("cutmix", v2.CutMix))
        if settings[name]
    ]
    return v2.RandomChoice(kinds)


# ---------------------------------------------------------------------------------------------------------------
# One run


class Run:
    """A run and its folder: config.json, log.jsonl, checkpoint.pt while it lasts, student.safetensors, result.json.

    With a moving average of the weights, student_ema.safetensors too.
    """

    def __init__(self, settings: dict, out: str, processes: Processes) -> None:
        self.settings, self.processes = settings, processes
        self.folder = Path(out) / run_name(settings)
        self.checkpoint = self.folder / "checkpoint.pt"

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict | None:
        """The result of the run if it is finished."""
        return read_result(self.folder) if (self.folder / "student.safetensors").is_file() else None

    def check_settings(self) -> None:
        """Raises a `UserError` if the folder holds a run of other settings."""
        path = self.folder / "config.json"
        if not path.is_file():
            return
        try:
            old = json.loads(path.read_text())["settings"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read; start over with --fresh") from error
        differ = [
            f"{name} {old.get(name)} there and {value} here"
            for name, value in self.settings.items()
            if name not in INCIDENTAL and old.get(name) != value
        ]
        if differ:
            raise UserError(
                f"{self.folder} holds a run with other settings: {'; '.join(differ)}; start over with "
                f"--fresh, or choose another --out"
            )

    def clear(self) -> None:
        """Forgets what is on disk of this run."""
        for name in (
            "config.json",
            "log.jsonl",
            "checkpoint.pt",
            "student.safetensors",
            "student_ema.safetensors",
            "result.json",
        ):
            (self.folder / name).unlink(missing_ok=True)

    def write_json(self, name: str, content: dict) -> None:
        with replacing(self.folder / name) as part:
            part.write_text(json.dumps(content, indent=1) + "\n")

    def append_log(self, line: dict) -> None:
        try:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.folder / 'log.jsonl'}: {error.strerror}") from error


class Stopped(Exception):
    """A signal asked for an end; the training has been saved. args: what to say, the signals."""

    def __str__(self) -> str:
        return self.args[0]


class Trainer:
    """The state of a training: student, optimiser, scaler, moving average and position, and the steps that change it.

    Nothing else is random: each step seeds torch from (seed, step, process), and the data's order and augmentation
    follow from (seed, epoch, image). So the position stands for every random state, and a run that goes on from a
    checkpoint ends as it would have without a break.
    """

    def __init__(self, run: Run, data: Data, teacher: ViT | None) -> None:
        settings, device = run.settings, run.processes.device
        self.run, self.settings, self.device, self.data, self.teacher = run, settings, device, data, teacher
        torch.manual_seed(settings["seed"])
        config = student_config(settings["teacher"], settings["student"], len(data.classes), settings["img_size"])
        student = ViT(replace(config, drop_path=settings["drop_path"]))
        if settings["init"]:
            init_from(student, teacher, settings["init"])
        self.student = student.to(device)
        self.module: nn.Module = self.student
        if settings["mode"] == "transfer":
            self.teacher = teacher.to(device)
            self.module = transfer_of(settings, self.student, teacher)
        self.ema = None
        if settings["ema"]:
            average = torch.optim.swa_utils.get_ema_multi_avg_fn(settings["ema"])
            self.ema = torch.optim.swa_utils.AveragedModel(self.student, multi_avg_fn=average)
        if settings["compile"]:
            self.student.compile()
        self.parallel = self.module
        if run.processes.world > 1:
            self.parallel = nn.parallel.DistributedDataParallel(
                self.module,
                [device] if device.type == "cuda" else None,
                find_unused_parameters=settings["method"] == "copy",
            )
        lr = settings["lr"] * settings["batch_size"] / 256
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.student, lr, settings["weight_decay"], settings["layer_decay"]),
            lr,
            betas=(0.9, settings["beta2"]),
            fused=device.type in ("cuda", "cpu"),
        )
        whole, rest = divmod(len(data.train), settings["batch_size"])
        self.epoch_steps = whole + (rest >= run.processes.world)  # the loader leaves out a batch too small to share
        self.steps = settings["epochs"] * self.epoch_steps
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.autocast = autocast_type(settings["amp"], device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast is torch.float16)
        self.mix = mixing(settings, len(data.classes))
        if (batch := min(settings["batch_size"], len(data.train))) < run.processes.world:
            raise UserError(
                f"a batch of {batch} images cannot be shared by {run.processes.world} processes; raise "
                f"--batch-size or --train-images"
            )
        self.step = 0
        self.meters = torch.zeros(4, device=device)  # sums over the epoch: loss, transfer loss, right, images
        self.unchecked: list[Tensor] = []  # losses of the last steps, not yet known to be finite
        self.seconds = 0.0  # of training, over all sittings
        self.found: dict[str, float] = {}  # of the last evaluation

    # A step

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update of the student, from this process's share of a global batch."""
        settings, world = self.settings, self.run.processes.world
        # torch keeps 32 bits of a seed on the CPU: fold the three numbers into them.
        torch.manual_seed((settings["seed"] * 7_368_787 + self.step * 104_729 + self.run.processes.rank) % 2**32)
        share = cosine_schedule(self.step, self.steps, settings["warmup"] * self.steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * share
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        targets = labels
        if self.mix:
            images, targets = self.mix(images, labels)
        # Processes average their gradients; their shares of a last, shorter batch may differ by an image.
        seen = self.step % self.epoch_steps * settings["batch_size"]
        total = min(settings["batch_size"], len(self.data.train) - seen)
        pieces = list(
            zip(
                images.chunk(settings["accumulate"]),
                targets.chunk(settings["accumulate"]),
                labels.chunk(settings["accumulate"]),
            )
        )
        sums = torch.zeros(4, device=self.device)
        for number, (x, y, label) in enumerate(pieces, start=1):
            hold = world > 1 and number < len(pieces)  # exchange gradients with the last piece only
            with self.parallel.no_sync() if hold else nullcontext():
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    output = self.parallel(x)
                logits, transfer_loss = output if isinstance(output, tuple) else (output, output.new_zeros(()))
                loss = F.cross_entropy(logits.float(), y, label_smoothing=settings["smoothing"])
                loss = loss + settings["weight"] * transfer_loss.float()
                self.scaler.scale(loss * (len(x) * world / total)).backward()
            with torch.no_grad():
                right = (logits.argmax(1) == label).sum()
                count = loss.new_tensor(len(x))
                sums += torch.stack((loss * count, transfer_loss.float() * count, right.float(), count))
        if settings["clip"]:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.student.parameters(), settings["clip"])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(self.student)
        self.meters += sums
        self.unchecked.append(sums[0] / sums[3])
        self.step += 1

    def check_finite(self) -> None:
        """Raises a `UserError` if one of the last losses is not finite, in whichever process."""
        if not self.unchecked:
            return
        losses = self.run.processes.sum(torch.stack(self.unchecked))
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = self.step - len(losses) + bad[0].item()
            path = self.run.checkpoint
            kept = f"the last good state is in {path}" if path.is_file() else "nothing was kept"
            raise UserError(
                f"the loss is not finite at step {step} (learning rate "
                f"{self.optimiser.param_groups[0]['lr']:.3g}); {kept}; lower --lr, or --amp off"
            )
        self.unchecked.clear()

    # To disk and back

    def save(self, unfinished: float = 0.0) -> None:
        """Writes the checkpoint; `unfinished` are the seconds spent on the epoch so far."""
        self.check_finite()
        self.saved, meters = time.perf_counter(), self.run.processes.sum(self.meters.clone())
        if not self.run.processes.main:
            return
        state = dict(
            step=self.step,
            meters=meters,
            seconds=self.seconds + unfinished,
            student=self.student.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scaler=self.scaler.state_dict(),
            ema=self.ema.state_dict() if self.ema else None,
        )
        with replacing(self.run.checkpoint) as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one, and takes what came after it out of the log."""
        self.saved, main = time.perf_counter(), self.run.processes.main
        if self.run.checkpoint.is_file():
            try:
                state = torch.load(self.run.checkpoint, map_location=self.device, weights_only=True)
                self.student.load_state_dict(state["student"])
                self.optimiser.load_state_dict(state["optimiser"])
                if state["scaler"]:  # empty where the run had none before
                    self.scaler.load_state_dict(state["scaler"])
                if self.ema:
                    self.ema.load_state_dict(state["ema"])
                self.step, self.seconds = state["step"], state["seconds"]
                self.meters = state["meters"] if main else torch.zeros_like(state["meters"])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a damaged file makes torch say
                raise UserError(
                    f"{self.run.checkpoint} cannot be read ({str(error).splitlines()[0]}); start over with --fresh"
                ) from error
        path, kept = self.run.folder / "log.jsonl", []
        if main and path.is_file():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] > self.step:
                        break
                except ValueError:  # the end of a line was lost
                    break
                kept.append(line + "\n")
            with replacing(path) as part:
                part.write_text("".join(kept))

    # The whole

    def validate(self, student: ViT) -> dict[str, float]:
        """Accuracy on the validation set of the student, or of the moving average of its weights."""
        settings, processes = self.settings, self.run.processes
        student.eval()
        found = evaluate(
            predictor(settings, student, self.teacher),
            self.data.val,
            min(256, settings["batch_size"]),
            self.device,
            settings["workers"],
            self.autocast,
            processes.shard,
        )
        student.train()
        return found

    def train(self) -> dict:
        """Trains to the end, from the checkpoint if there is one, and returns the result. Raises `Stopped`."""
        self.resume()
        self.module.train()
        signals: list[int] = []

        def note(number: int, frame: object) -> None:
            if signals:  # a second one does not wait
                raise KeyboardInterrupt
            signals.append(number)

        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with tqdm(
                total=self.steps,
                initial=self.step,
                desc=self.run.name,
                unit="step",
                disable=not self.run.processes.main,
            ) as bar:
                while self.step < self.steps:
                    self.train_epoch(bar, signals)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.finish()

    def train_epoch(self, bar: tqdm, signals: list[int]) -> None:
        """Trains to the end of the epoch, from where it stands in it; logs, saves, and evaluates if it is time to."""
        settings, processes = self.settings, self.run.processes
        epoch, start = divmod(self.step, self.epoch_steps)
        begun, images_before = time.perf_counter(), processes.sum(self.meters.clone())[3].item()

        def state() -> dict[str, float]:
            spent = time.perf_counter() - begun
            averages, images = self.averages()
            return {**averages, "images_per_s": (images - images_before) / spent}

        for images, labels in loader(
            self.data.train,
            settings["batch_size"],
            settings["seed"],
            epoch,
            start,
            processes.shard,
            settings["workers"],
            self.device.type == "cuda",
        ):
            self.train_step(images, labels)
            bar.update()
            if self.step % 10 == 0:
                self.check_finite()
                bar.set_postfix(state())
            # `pause` asks the other processes, and so waits for the GPU: with several, every tenth step will do, unless
            # steps are long. After an epoch's last step it is called below, when the epoch has its line in the log.
            often = processes.world == 1 or settings["accumulate"] > 1 or self.device.type == "cpu"
            if self.step % self.epoch_steps and (often or self.step % 10 == 0):
                self.pause(signals, 600, time.perf_counter() - begun)
        self.check_finite()
        self.seconds += time.perf_counter() - begun
        line = {
            "epoch": epoch + 1,
            "step": self.step,
            **state(),
            "seconds": self.seconds,
            "peak_memory_mb": peak_memory(self.device),
        }
        # Evaluate once as many images have been trained on as an evaluation has: a forward pass is about a third of a
        # step, so that evaluation adds a third to the time at most.
        train, val = len(self.data.train), len(self.data.val)
        if (epoch + 1) * train // val > epoch * train // val or self.step == self.steps:
            self.found = self.validate(self.student)
            line |= {f"val_{name}": self.found[name] for name in ("top1", "top5", "loss")}
        self.meters.zero_()
        if processes.main:
            self.run.append_log(line)
        self.pause(signals, 2)

    def pause(self, signals: list[int], interval: float, unfinished: float = 0.0) -> None:
        """Saves if the last checkpoint is `interval` seconds old or a signal asks for the end, and then `Stopped`."""
        processes = self.run.processes
        stop, due = processes.any(bool(signals), processes.main and time.perf_counter() - self.saved > interval)
        if stop or due:
            self.save(unfinished)
        if stop:
            raise Stopped(f"stopped at step {self.step} of {self.steps}", signals)

    def averages(self) -> tuple[dict[str, float], float]:
        """What the epoch has brought so far, with the learning rate; and of how many images."""
        loss, transfer_loss, right, images = self.run.processes.sum(self.meters.clone()).tolist()
        return {
            "loss": loss / images,
            "transfer_loss": transfer_loss / images,
            "top1": 100 * right / images,
            "lr": max(group["lr"] for group in self.optimiser.param_groups),
        }, images

    def finish(self) -> dict:
        """Evaluates the student, and writes it with the result."""
        result = {
            **(self.found or self.validate(self.student)),
            "epochs": self.settings["epochs"],
            "steps": self.steps,
            "train_seconds": self.seconds,
            "peak_memory_mb": peak_memory(self.device),
        }
        students = {"student.safetensors": self.student}
        if self.ema:
            students["student_ema.safetensors"] = self.ema.module
            result |= {f"ema_{name}": value for name, value in self.validate(self.ema.module).items()}
        if self.run.processes.main:
            for name, student in students.items():
                with replacing(self.run.folder / name) as part:
                    save_file({key: value.cpu() for key, value in student.state_dict().items()}, part)
            self.run.write_json("result.json", result)
            self.run.checkpoint.unlink(missing_ok=True)
        return result


def peak_memory(device: torch.device) -> float:
    """The most memory in use so far, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # Linux and macOS

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1e-3)


# ---------------------------------------------------------------------------------------------------------------
# The grid


def needs_teacher(settings: dict) -> bool:
    """Whether a run needs the teacher's weights: a baseline needs only its shape."""
    return settings["mode"] == "transfer" or bool(settings["init"])


def table(results: list[tuple[dict, dict]], device: torch.device) -> str:
    """Rows of teacher, baseline, student and what it gained, top-1 in percent.

    The teacher's own accuracy is known where its task is the student's: for nano teachers on `matching`.
    """

    def fellows(settings: dict) -> tuple:
        """What a run and its baseline share; the baseline's student is a standard one (arXiv 2605.07191)."""
        return tuple(settings[name] for name in ("teacher", "data", "seed"))

    baselines = {fellows(settings): result["top1"] for settings, result in results if column_of(settings) == "baseline"}
    accuracies: dict[tuple, float] = {}
    rows = [("teacher", "data", "student", "seed", "teacher", "baseline", "method", "top-1", "gain")]
    for settings, result in [pair for pair in results if pair[0]["mode"] != "baseline"] or results:
        name, baseline = settings["teacher"], baselines.get(fellows(settings))
        key = name, settings["weights"]
        if settings["data"] == "matching" and not find(name).url and needs_teacher(settings) and key not in accuracies:
            accuracies[key] = evaluate(run_teacher(settings).to(device), run_data(settings).val, 500, device)["top1"]
        gain = None if baseline is None or settings["mode"] == "baseline" else result["top1"] - baseline
        rows.append(
            (
                teacher_title(settings),
                Path(settings["data"]).name,
                settings["student"],
                str(settings["seed"]),
                *("-" if value is None else f"{value:.1f}" for value in (accuracies.get(key), baseline)),
                settings["method"] or settings["mode"],
                f"{result['top1']:.1f}",
                "-" if gain is None else f"{gain:+.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    args = parse_arguments()
    plan = grid(args)
    processes = Processes(args.device)
    autocast_type(args.amp, processes.device)  # raises if the device has none
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {args.out}: {error.strerror}; choose another --out") from error
    runs = [Run(settings, args.out, processes) for settings in plan]
    for first, second in itertools.combinations(runs, 2):
        if first.folder == second.folder:
            raise UserError(f"two runs of this grid share the folder {first.folder}; use two commands and two --out")
    if args.fresh:
        processes.first(lambda: [run.clear() for run in runs if processes.main])
    for run in runs:
        run.check_settings()
    waiting = [run for run in runs if not run.finished()]
    for settings in {
        (run.settings["teacher"], run.settings["img_size"]): run.settings
        for run in waiting
        if needs_teacher(run.settings)
    }.values():
        processes.first(lambda: run_teacher(settings))  # what it needs is fetched, or missed, before any training
    launcher = ["torchrun", f"--nproc_per_node={processes.world}"] if processes.world > 1 else ["python"]
    command = shlex.join([*launcher, "train.py", *(word for word in sys.argv[1:] if word != "--fresh")])
    for run in runs:
        result = run.finished()
        if result is None:
            try:
                train_run(run, command)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "a step does not fit into the memory of the GPU; raise --accumulate, which cuts "
                    "batches into pieces, or lower --batch-size"
                ) from error
            except Stopped as stopped:
                if processes.main:
                    print(f"{run.name}: {stopped}; go on with: {command}", file=sys.stderr)
                sys.exit(128 + (stopped.args[1] or [signal.SIGTERM])[0])
        elif processes.main:
            print(f"{run.name}: finished before, top-1 {result['top1']:.1f}; --fresh trains it again")
    if processes.main:
        print(table([(run.settings, run.finished()) for run in runs], processes.device))
        print(f"next: python eval.py {shlex.quote(str(runs[-1].folder))}")
    if dist.is_initialized():
        dist.destroy_process_group()


def train_run(run: "Run", command: str) -> None:
    """One run of the grid, from its data to its result."""
    settings, processes = run.settings, run.processes
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(processes.device)
    data = processes.first(lambda: run_data(settings))
    teacher = run_teacher(settings) if needs_teacher(settings) else None
    trainer = Trainer(run, data, teacher)
    if processes.main:
        recipe = {name: settings[name] for name in RECIPES[settings["recipe"]]}
        precision = str(trainer.autocast or "float32").removeprefix("torch.")
        print(
            f"{run.name}: {len(data.train):,} training images, {len(data.val):,} held out, {len(data.classes)} "
            f"classes; {processes.device}, {precision}; recipe {settings['recipe']}: "
            + ", ".join(f"{name} {value:g}" for name, value in recipe.items())
        )
        run.write_json(
            "config.json",
            {
                "settings": settings,
                "student": asdict(trainer.student.config),
                "classes": data.classes,
                "command": command,
                "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
            },
        )
    result = trainer.train()
    if processes.main:
        print(
            f"{run.name}: top-1 {result['top1']:.1f}, top-5 {result['top5']:.1f} on {result['n']:,} images, "
            f"{result['train_seconds']:.0f} s of training"
        )


if __name__ == "__main__":
    answer_mistakes(main)
