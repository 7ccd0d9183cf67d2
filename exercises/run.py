"""Trains, or looks, with a learner's function in its place: predict, then look.

    python exercises/run.py 4 --radius 0 1 3 -- --mode transfer --method copy --seed 0 1 2

What stands before `--` is the exercise's own, what stands behind it is for train.py. It does not start while the
heading "Prediction" of the written answer is empty. Its runs, below runs/exercises, never look like true ones:
config.json names the exercise, and eval.py's table and accuracy refuse them. It computes on the CPU unless a --device
is named.
"""

import hashlib
import json
import math
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from check import prediction_hash, written
from degraded import all_degraded
from examine import HERE, ROOT, load  # This puts the repository's root on the path.
from kit import Wrong, plugged
from torch import Tensor, nn
from tqdm import tqdm

import eval as evaluation
import model
import teachers
import train
from model import NOTHING, Attended, Handed, RoPE, Routing, ViT, ViTConfig, attention_map
from support import data, runs
from support.arguments import Parser, number_from
from support.errors import UserError, answer_mistakes
from support.matching import layout, matching
from support.processes import Processes
from transfer import AttentionTransfer, measures

CONTROLS = ("true", "other_image", "no_image", "random")


# ---- Training with a function in its place ---------------------------------------------------------------------------


def train_grid(
    args: Namespace,
    label: str,
    words: list[str],
    change: Callable = lambda transfer: None,
    teacher: ViT | None = None,
    build_student: Callable = train.build_student,
) -> list[Path]:
    """Trains what train.py would with those words, each transfer changed by `change`, and prints what was found.

    A `teacher` takes the place of the one that the words name, and `build_student` makes the students. Returns the
    folders of the runs.
    """
    plan = train.plan_runs(train.parse_arguments(["--device", "cpu", *words]))
    processes, folders = Processes(plan[0].device), []

    def changed(settings: train.Settings, student: ViT, its_teacher: ViT | None) -> nn.Module:
        transfer = train.build_model(settings, student, its_teacher)
        if settings.method is not None:
            change(transfer)
        return transfer

    for settings in plan:
        folder = args.out / label.replace(", ", "-").replace(" ", "-") / train.describe(settings)["name"]
        folders.append(folder)
        has_run = (folder / "config.json").is_file()
        # A run of another answer starts over. One of another prediction stays with what was predicted then.
        if "--fresh" in words or has_run and runs.read_config(folder)["exercise"]["answer"] != args.record["answer"]:
            runs.clear(folder, processes)
        images, its_teacher = train.build_data(settings), None
        if settings.needs_teacher:
            its_teacher = teacher or train.build_teacher(settings)
        student = build_student(settings, len(images.classes), its_teacher)
        run = train.Training(settings, images, student, its_teacher, processes, changed)
        command = shlex.join(["python", "exercises/run.py", *args.record["arguments"]])
        config = train.config_of(run, command) | {"exercise": args.record}
        with runs.begin(folder, config, processes) as is_left:
            if is_left:
                with tqdm(total=run.steps, desc=f"{label} {folder.name}", unit="step") as bar:
                    train.train(run, folder, bar)

    # One line: top-1 on held-out images, as mean, deviation and each seed's, and on training images at the end.
    held_out = [runs.read_result(folder)["top1"] for folder in folders]
    training = statistics.mean(runs.read_log(folder)[-1]["top1"] for folder in folders)
    spread = f" ± {statistics.stdev(held_out):.1f}" if len(held_out) > 1 else ""
    each = ", ".join(f"{top1:.1f}" for top1 in held_out)
    figures = f"top-1 {statistics.mean(held_out):.1f}{spread} ({each}), on training images {training:.1f}"
    print(f"{label:24} {figures}: {folders[0].parent}")
    return folders


def note(args: Namespace, name: str, settings: dict, result: dict) -> None:
    """Writes what was found without a training as a run of its own, which marking looks for.

    With the same answer, what was predicted first stays.
    """
    folder, record = args.out / name, args.record
    if (folder / "config.json").is_file():
        held = runs.read_json(folder / "config.json", {"exercise"})["exercise"]
        record = held if held["answer"] == record["answer"] else record
    runs.write_json(folder / "config.json", {"settings": settings, "exercise": record})
    runs.write_json(folder / "result.json", result)


# ---- The eight -------------------------------------------------------------------------------------------------------


def exercise_1(args: Namespace, answer: ModuleType) -> None:
    for condition in args.condition:

        def stretched(block: int, r: Routing, condition: float = condition) -> Routing:
            """The same maps from other q and k, whose largest stretch is `condition` times the smallest."""
            H, d = r.q.shape[1], r.q.shape[-1]
            generator = torch.Generator().manual_seed(block)
            left, right = torch.linalg.qr(torch.randn(2, H, d, d, generator=generator))[0]
            stretches = condition ** torch.linspace(-0.5, 0.5, d)
            return answer.same_map(r, ((left * stretches) @ right).to(r.q), r.q.new_zeros(H, d))

        label = f"condition {condition:g} {'q' if 'q' in args.train else 'map'}"
        train_grid(args, label, args.train, lambda transfer, f=stretched: plugged(transfer, f))


def exercise_2(args: Namespace, answer: ModuleType) -> None:
    def row_loss(p: Tensor, log_s: Tensor) -> Tensor:
        """The learner's value, whose gradient is the learner's slope."""
        value, slope = answer.reverse_kl(p.clamp_min(torch.finfo(p.dtype).tiny).log().detach(), log_s.detach())
        surrogate = (slope * log_s).sum(-1)
        return value + surrogate - surrogate.detach()

    train_grid(args, "reverse", args.train, lambda transfer: setattr(transfer, "row_loss", row_loss))


@torch.inference_mode()
def exercise_3(args: Namespace, answer: ModuleType) -> None:
    count = 1000
    plan = layout(count, data.VAL_SEED)
    right = plan.cells.gather(1, plan.cue[:, None]).squeeze(1)  # the cell of the cued glyph
    print(f"how often the cued glyph is first of four, in % of {count:,} images; guessing has 25")
    for folder in args.runs:
        settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
        normalisation = teachers.find_teacher(settings.teacher).normalisation
        images = data.normalise(matching(count, data.VAL_SEED)[0], *normalisation)
        both = evaluation.both_maps(settings, student, train.build_teacher(settings), images)
        result = {}
        for side, maps in zip(("teacher", "student"), both, strict=True):
            for keep in args.keep:
                patches = answer.rollout(maps, torch.full((len(maps),), keep))[:, 0, student.config.prefix :]
                first = plan.cells.gather(1, patches.gather(1, plan.cells).argmax(1, keepdim=True)).squeeze(1)
                share = result[f"{side}, keep {keep:g}"] = 100 * float((first == right).float().mean())
                print(f"{Path(folder).name:44} {side}, keep {keep:g}: {share:.1f}")
        note(args, Path(folder).name, asdict(settings), result)


def exercise_4(args: Namespace, answer: ModuleType) -> None:
    for radius in args.radius:

        def change(transfer: AttentionTransfer, radius: int = radius) -> None:
            plugged(transfer, lambda block, r: answer.windowed(r, transfer.student.config, radius))

        train_grid(args, f"radius {radius}", args.train, change)


def exercise_5(args: Namespace, answer: ModuleType) -> None:
    def other_image(block: int, r: Routing) -> Routing:
        # A generator of the same seed for all blocks: all look at the same other image. One alone has no other.
        return answer.other_image(r, torch.Generator().manual_seed(0)) if len(r.q) > 1 else r

    functions = {"other_image": other_image, "no_image": lambda block, r: answer.no_image(r)}
    for control in args.control:
        words = ["--mode", "transfer", *args.train, *(["--weights", "random"] if control == "random" else [])]
        function = functions.get(control, lambda block, r: r)
        train_grid(args, control, words, lambda transfer, f=function: plugged(transfer, f))


def built_with(attention: type) -> Callable:
    """Returns what builds students whose attention is of that class."""

    def build_student(*given: Any) -> ViT:
        with patch.object(model, "Attention", attention):
            return train.build_student(*given)

    return build_student


def exercise_6(args: Namespace, answer: ModuleType) -> None:
    class GatedAttention(model.Attention):
        """Attention of which each head has a gate, between the map that it is handed and its own."""

        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.raw_gate = nn.Parameter(torch.zeros(config.heads))

        def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
            if handed.routing is None:
                return super().forward(x, rope, bias, handed)
            own, v = self.route(x, rope, bias), self.values(x)
            # At the learning rate of the weights a gate would hardly move, hence the 20.
            read = answer.gated_read(handed.routing, own, v, answer.open_gates(20 * self.raw_gate))
            return Attended(own, v, self.proj(self.norm(read.transpose(1, 2).reshape(x.shape))))

    words = ["--mode", "transfer", "--method", "copy", *args.train]
    folders = train_grid(args, "gates", words, build_student=built_with(GatedAttention))
    tensors = [evaluation.load_file(folder / "student.safetensors") for folder in folders]
    for number, name in enumerate(sorted(name for name in tensors[0] if name.endswith("raw_gate"))):
        gates = torch.stack([answer.open_gates(20 * held[name]) for held in tensors])  # (seeds, H)
        heads = " ".join(f"{gate:.2f}" for gate in gates.mean(0))
        spread = gates.mean(1).std(correction=min(1, len(gates) - 1))  # over seeds
        print(f"block {number}: gates by head {heads}; mean {gates.mean():.2f} ± {spread:.2f}")


def exercise_7(args: Namespace, answer: ModuleType) -> None:
    usual, path = teachers.load_teacher("deit_nano"), args.out / f"teacher-{args.record['answer']}.safetensors"
    spec = teachers.find_teacher("deit_nano")
    with patch.object(model, "Attention", answer.NullAttention):
        teachers.pretrain("deit_nano", path)
        null = teachers.open_file("deit_nano", path, spec.config).eval().requires_grad_(False)
    images = data.load_data("matching", "", 32, spec.normalisation).val
    show_sinks(answer, torch.stack([images[number][0] for number in range(256)]), usual, null)
    students = {"standard": train.build_student, "null": built_with(answer.NullAttention)}
    for teacher, weights in {"none": usual, "usual": usual, "null": null}.items():
        words = ["--mode", "baseline" if teacher == "none" else "transfer", *args.train]
        for student, build_student in students.items():
            label = f"teacher {teacher}, student {student}"
            train_grid(args, label, words, teacher=weights, build_student=build_student)


@torch.inference_mode()
def show_sinks(answer: ModuleType, images: Tensor, usual: ViT, null: ViT) -> None:
    """What the strongest token gets of a row, in both teachers, and what leaks to the null key, by block."""
    seen = {usual: [], null: []}
    for teacher, attended in seen.items():
        teacher(images, seen=attended)
    for number, (plain, other) in enumerate(zip(seen[usual], seen[null], strict=True)):
        maps = attention_map(plain.routing), attention_map(other.routing)
        leak = answer.read_with_null(other.routing, other.v, null.blocks[number].attn.null)[1]
        kept = maps[1] * (1 - leak)[..., None]
        usual_sink, null_sink = (measures(m, m, usual.config)["sink"][0].mean() for m in (maps[0], kept))
        heads = " ".join(f"{share:.2f}" for share in leak.mean((0, 2)))
        print(f"block {number}: sink {usual_sink:.2f}, with a null key {null_sink:.2f}; leak by head {heads}")


def exercise_8(args: Namespace, answer: ModuleType) -> None:
    gains = json.loads((HERE / "gains.json").read_text("utf-8"))
    worse = all_degraded(teachers.load_teacher("deit_nano"))
    images = data.load_data("matching", "", 32, teachers.find_teacher("deit_nano").normalisation).val
    plan = {settings.seed: settings for settings in train.plan_runs(train.parse_arguments(args.train))}
    for seed, settings in plan.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        pictures, labels = zip(*(images[number] for number in order[:512].tolist()), strict=True)
        pictures, labels = torch.stack(pictures), torch.tensor(labels)
        scores = {name: float(answer.score(worse[name], pictures, labels)) for name in tqdm(gains, "scores")}
        if not all(map(math.isfinite, scores.values())):
            raise Wrong("a score is not finite")
        for name in sorted(scores, key=scores.get):
            print(f"{name:12} score {scores[name]:.4g}, gain {gains[name]:.1f}")
        correlation = rank_correlation(list(scores.values()), list(gains.values()))
        print(f"seed {seed}: rank correlation {correlation:.2f}")
        note(args, f"seed{seed}", asdict(settings), {"rank correlation": correlation} | scores)


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's: equal numbers share the mean of their ranks, and a side whose numbers are all equal has no order."""
    both = torch.tensor([x, y], dtype=torch.float64)
    below, equal = both[:, :, None] > both[:, None], both[:, :, None] == both[:, None]
    ranks = below.double().sum(-1) + equal.double().sum(-1) / 2
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num())


EIGHT = [exercise_1, exercise_2, exercise_3, exercise_4, exercise_5, exercise_6, exercise_7, exercise_8]
EXERCISES = dict(enumerate(EIGHT, start=1))


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_arguments(words: list[str] | None = None) -> Namespace:
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("exercise", type=int, choices=EXERCISES, metavar="N", help="The number of an exercise, 1 to 8.")
    add("runs", nargs="*", metavar="RUN", help="Finished runs, for exercise 3.")
    stretch = "For exercise 1: the largest stretch of a head, in smallest ones."
    add("--condition", nargs="+", type=number_from(float, 1), default=[1, 10, 100], metavar="X", help=stretch)
    keep = "For exercise 3: the share of itself that a token keeps."
    add("--keep", nargs="+", type=number_from(float, 0, 1), default=[0, 0.5], metavar="X", help=keep)
    radius = "For exercise 4: how many rows and columns away a patch sees."
    add("--radius", nargs="+", type=number_from(int, 0), default=[0, 1, 3], metavar="N", help=radius)
    add("--control", nargs="+", choices=CONTROLS, default=CONTROLS, help="For exercise 5: the controls.")
    add("--answers", type=Path, default=ROOT / "answers", metavar="DIR", help="The answers. Default: answers.")
    args = parser.parse_args(words[:cut])
    if args.runs and args.exercise != 3:
        raise UserError("only exercise 3 takes finished runs; words for train.py stand behind --")
    if args.exercise == 3 and not args.runs:
        raise UserError("exercise 3 looks at finished runs; name their folders")
    args.words, args.train = words, words[cut + 1 :]
    args.out = Path(train.parse_arguments(args.train).out, "exercises", f"e{args.exercise}")  # It checks them, too.
    return args


def main(words: list[str] | None = None) -> None:
    args = parse_arguments(words)
    path, page = (args.answers / f"e{args.exercise}.{suffix}" for suffix in ("py", "md"))
    if not path.is_file():
        raise UserError(f"{path} is not there; python exercises/check.py --start makes it")
    prediction = written(page).get("Prediction", "")
    if not prediction:
        raise UserError(f"{page} has no prediction yet; write down what you expect, and why, before you look")
    code = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    sealed = prediction_hash(prediction)
    args.record = {"number": args.exercise, "arguments": args.words, "prediction": sealed, "answer": code}
    try:
        EXERCISES[args.exercise](args, load(path))
    except (Wrong, NotImplementedError) as error:
        advice = f"python exercises/check.py {args.exercise} shows what is wrong"
        raise UserError(f"{path} does not work yet ({' '.join(str(error).split())[:200]}); {advice}") from error


if __name__ == "__main__":
    answer_mistakes(main)
