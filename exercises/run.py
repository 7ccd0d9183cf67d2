"""Trains, or looks, with a learner's function in its place: predict, then look.

    python exercises/run.py 4 --radius 0 1 3 -- --mode transfer --method copy --seed 0 1 2

What stands before `--` is the exercise's own, what stands behind it is for train.py. It does not start while the
heading "Prediction" of the written answer is empty. Its runs, below runs/exercises, never look like true ones:
config.json names the exercise, and eval.py's table and accuracy refuse them.
"""

import hashlib
import json
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(path) for path in (ROOT, HERE) if str(path) not in sys.path]

import torch  # noqa: E402
from degraded import all_degraded  # noqa: E402
from examine import load  # noqa: E402
from grade import prediction_hash, written  # noqa: E402
from kit import Wrong, plugged  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import eval as evaluation  # noqa: E402
import model  # noqa: E402
import teachers  # noqa: E402
import train  # noqa: E402
from model import NOTHING, Attended, Handed, RoPE, Routing, ViT, ViTConfig, attention_map  # noqa: E402
from support import data, runs  # noqa: E402
from support.arguments import Parser, number_from  # noqa: E402
from support.errors import UserError, answer_mistakes  # noqa: E402
from support.matching import layout, matching  # noqa: E402
from support.processes import Processes  # noqa: E402
from transfer import AttentionTransfer, measures  # noqa: E402

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
    """Trains what train.py would with those words, each transfer changed by `change`; returns the runs' folders.

    A `teacher` takes the place of the one that the words name, and `build_student` makes the students.
    """
    options = train.parse_arguments(words)
    plan = train.plan_runs(options)
    processes, folders = Processes(plan[0].device), []

    def changed(settings: train.Settings, student: ViT, its_teacher: ViT | None) -> nn.Module:
        transfer = train.build_model(settings, student, its_teacher)
        if settings.method is not None:
            change(transfer)
        return transfer

    for settings in plan:
        folder = Path(options.out) / "exercises" / f"e{args.exercise}" / label / train.describe(settings)["name"]
        folders.append(folder)
        has_run = (folder / "config.json").is_file()
        # A run of another answer starts over. One of another prediction stays with what was predicted then.
        if options.fresh or has_run and runs.read_config(folder)["exercise"]["answer"] != args.hash:
            runs.clear(folder, processes)
        images, its_teacher = train.build_data(settings), None
        if settings.needs_teacher:
            its_teacher = teacher or train.build_teacher(settings)
        student = build_student(settings, len(images.classes), its_teacher)
        run = train.Training(settings, images, student, its_teacher, processes, changed)
        record = {"number": args.exercise, "arguments": args.words, "prediction": args.prediction, "answer": args.hash}
        command = shlex.join(["python", "exercises/run.py", *args.words])
        config = train.config_of(run, command) | {"exercise": record}
        with runs.begin(folder, config, processes) as is_left:
            if is_left:
                with tqdm(total=run.steps, desc=f"{label} {folder.name}", unit="step") as bar:
                    train.train(run, folder, bar)
    return folders


def tell(label: str, folders: list[Path]) -> None:
    """One line: top-1 on held-out images, mean, deviation and each seed's; on training images at the end; and where."""
    held_out = [runs.read_result(folder)["top1"] for folder in folders]
    training = statistics.mean(runs.read_log(folder)[-1]["top1"] for folder in folders)
    spread = f" ± {statistics.stdev(held_out):.1f}" if len(held_out) > 1 else ""
    each = ", ".join(f"{top1:.1f}" for top1 in held_out)
    figures = f"top-1 {statistics.mean(held_out):.1f}{spread} ({each}), on training images {training:.1f}"
    print(f"{label:24} {figures}: {folders[0].parent}")


# ---- The eight -------------------------------------------------------------------------------------------------------


def exercise_1(args: Namespace, answer: ModuleType) -> None:
    for condition in args.condition:

        def stretched(block: int, r: Routing, condition: float = condition) -> Routing:
            """The same maps from other q and k, whose largest stretch is `condition` times the smallest."""
            H, d = r.q.shape[1], r.q.shape[-1]
            generator = torch.Generator().manual_seed(block)
            left, right = torch.linalg.qr(torch.randn(2, H, d, d, generator=generator))[0]
            stretches = condition ** torch.linspace(-0.5, 0.5, d)
            return answer.same_map(r, (left * stretches) @ right, torch.zeros(H, d))

        what = "-".join(["condition", f"{condition:g}", "q" if "q" in args.train else "map"])
        tell(what, train_grid(args, what, args.train, lambda transfer, f=stretched: plugged(transfer, f)))


def exercise_2(args: Namespace, answer: ModuleType) -> None:
    def row_loss(p: Tensor, log_s: Tensor) -> Tensor:
        """The learner's value, whose gradient is the learner's slope."""
        value, slope = answer.reverse_kl(p.clamp_min(torch.finfo(p.dtype).tiny).log().detach(), log_s.detach())
        surrogate = (slope * log_s).sum(-1)
        return value + surrogate - surrogate.detach()

    tell("reverse", train_grid(args, "reverse", args.train, lambda transfer: setattr(transfer, "row_loss", row_loss)))


@torch.inference_mode()
def exercise_3(args: Namespace, answer: ModuleType) -> None:
    count = 1000
    plan = layout(count, data.VAL_SEED)
    right = plan.cells.gather(1, plan.cue[:, None]).squeeze(1)  # the cell of the cued glyph
    print(f"how often the cued glyph is first of four, in % of {count:,} images; guessing has 25")
    for folder in args.runs:
        settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
        images = data.normalise(
            matching(count, data.VAL_SEED)[0], *teachers.find_teacher(settings.teacher).normalisation
        )
        both = evaluation.both_maps(settings, student, train.build_teacher(settings), images)
        for side, maps in zip(("teacher", Path(folder).name), both, strict=True):
            for keep in args.keep:
                patches = answer.rollout(maps, torch.full((len(maps),), keep))[:, 0, student.config.prefix :]
                first = plan.cells.gather(1, patches.gather(1, plan.cells).argmax(1, keepdim=True)).squeeze(1)
                print(f"{side:44} keep {keep:g}: {100 * (first == right).float().mean():.0f}")


def exercise_4(args: Namespace, answer: ModuleType) -> None:
    for radius in args.radius:

        def change(transfer: AttentionTransfer, radius: int = radius) -> None:
            plugged(transfer, lambda block, r: answer.windowed(r, transfer.student.config, radius))

        tell(f"radius {radius}", train_grid(args, f"radius-{radius}", args.train, change))


def exercise_5(args: Namespace, answer: ModuleType) -> None:
    def other_image(block: int, r: Routing) -> Routing:
        # A generator of the same seed for all blocks: all look at the same other image. One alone has no other.
        return answer.other_image(r, torch.Generator().manual_seed(0)) if len(r.q) > 1 else r

    functions = {"other_image": other_image, "no_image": lambda block, r: answer.no_image(r)}
    for control in args.control:
        words = ["--mode", "transfer", *args.train, *(["--weights", "random"] if control == "random" else [])]
        function = functions.get(control, lambda block, r: r)
        tell(control, train_grid(args, control, words, lambda transfer, f=function: plugged(transfer, f)))


class GatedAttention(model.Attention):
    """Attention of which each head has a gate, between the map that it is handed and its own."""

    def __init__(self, config: ViTConfig, answer: ModuleType) -> None:
        super().__init__(config)
        self.answer, self.raw_gate = answer, nn.Parameter(torch.zeros(config.heads))

    def gates(self) -> Tensor:
        # At the learning rate of the weights a gate would hardly move, hence the 20.
        return self.answer.open_gates(20 * self.raw_gate)

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        if handed.routing is None:
            return super().forward(x, rope, bias, handed)
        own, v = self.route(x, rope, bias), self.values(x)
        read = self.answer.gated_read(handed.routing, own, v, self.gates())
        read = read.transpose(1, 2).reshape(x.shape)
        return Attended(own, v, self.proj(self.norm(read)))


def exercise_6(args: Namespace, answer: ModuleType) -> None:
    def change(transfer: AttentionTransfer) -> None:
        for block in transfer.student.blocks:
            if not isinstance(block.attn, GatedAttention):  # The moving average's student has gates already.
                gated = GatedAttention(transfer.student.config, answer).to(block.attn.qkv.weight.device)
                gated.load_state_dict(block.attn.state_dict(), strict=False)
                block.attn = gated

    folders = train_grid(args, "gates", ["--mode", "transfer", "--method", "copy", *args.train], change)
    tell("gates", folders)
    tensors = [evaluation.load_file(folder / "student.safetensors") for folder in folders]
    names = sorted(name for name in tensors[0] if name.endswith("raw_gate"))
    for number, name in enumerate(names):
        gates = torch.stack([answer.open_gates(20 * held[name]) for held in tensors])  # (seeds, H)
        heads = " ".join(f"{gate:.2f}" for gate in gates.mean(0))
        spread = gates.mean(1).std(correction=min(1, len(gates) - 1))  # over seeds
        print(f"block {number}: gates by head {heads}; mean {gates.mean():.2f} ± {spread:.2f}")


@contextmanager
def attention_of(answer: ModuleType) -> Iterator[None]:
    """Models that are built inside have the learner's NullAttention."""
    usual, model.Attention = model.Attention, answer.NullAttention
    try:
        yield
    finally:
        model.Attention = usual


def exercise_7(args: Namespace, answer: ModuleType) -> None:
    name, usual = "deit_nano", teachers.load_teacher("deit_nano")
    path = Path("runs/exercises/e7") / f"teacher-{args.hash}.safetensors"
    with attention_of(answer):
        teachers.pretrain(name, path)
        null = teachers.open_file(name, path, teachers.find_teacher(name).config).eval().requires_grad_(False)
    images = data.load_data("matching", "", 32, teachers.find_teacher(name).normalisation).val
    images = torch.stack([images[number][0] for number in range(256)])
    show_sinks(answer, images, usual, null)

    def student_with_null(*given: Any) -> ViT:
        with attention_of(answer):
            return train.build_student(*given)

    for teacher in ("none", "usual", "null"):
        for student in ("standard", "null"):
            words = ["--mode", "baseline" if teacher == "none" else "transfer", *args.train]
            label = f"teacher {teacher}, student {student}"
            folders = train_grid(
                args,
                label.replace(", ", "-").replace(" ", "-"),
                words,
                teacher=null if teacher == "null" else usual,
                build_student=student_with_null if student == "null" else train.build_student,
            )
            tell(label, folders)


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
    teacher = teachers.load_teacher("deit_nano")
    images = data.load_data("matching", "", 32, teachers.find_teacher("deit_nano").normalisation).val
    items = [images[number] for number in range(512)]
    pictures, labels = torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
    scores = {name: answer.score(worse, pictures, labels) for name, worse in all_degraded(teacher).items()}
    for name, score in sorted(scores.items(), key=lambda item: item[1]):
        print(f"{name:12} score {score:.4g}, gain {gains[name]:.1f}")
    both = torch.tensor([[scores[name], gains[name]] for name in scores], dtype=torch.float64)
    ranks = both.argsort(0).argsort(0).double()
    print(f"rank correlation {torch.corrcoef(ranks.T)[0, 1]:.2f}")


EXERCISES = {
    1: exercise_1,
    2: exercise_2,
    3: exercise_3,
    4: exercise_4,
    5: exercise_5,
    6: exercise_6,
    7: exercise_7,
    8: exercise_8,
}


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_arguments(words: list[str] | None = None) -> Namespace:
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    own, for_train = words[:cut], words[cut + 1 :]
    parser = Parser(description=__doc__)
    parser.add_argument("exercise", type=int, choices=EXERCISES, metavar="N", help="The number of an exercise, 1 to 8.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Finished runs, for exercise 3.")
    parser.add_argument(
        "--condition",
        nargs="+",
        type=number_from(float, 1),
        default=[1, 10, 100],
        help="Stretches for exercise 1: the largest relative to the smallest.",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        type=number_from(float, 0, 1),
        default=[0, 0.5],
        help="For exercise 3: the share of itself that a token keeps.",
    )
    parser.add_argument(
        "--radius", nargs="+", type=number_from(int, 0), default=[0, 1, 3], help="Radii for exercise 4, in patches."
    )
    parser.add_argument("--control", nargs="+", choices=CONTROLS, default=CONTROLS, help="Controls for exercise 5.")
    parser.add_argument(
        "--answers",
        type=Path,
        default=ROOT / "answers",
        metavar="DIR",
        help="The folder of the answers. Default: answers.",
    )
    args = parser.parse_args(own)
    if args.runs and args.exercise != 3:
        raise UserError("only exercise 3 takes finished runs; words for train.py stand behind --")
    if for_train:
        train.parse_arguments(for_train)  # a mistake in them is answered now
    args.words, args.train = words, for_train
    return args


def main(words: list[str] | None = None) -> None:
    args = parse_arguments(words)
    path, page = (args.answers / f"e{args.exercise}.{suffix}" for suffix in ("py", "md"))
    if not path.is_file():
        raise UserError(f"{path} is not there; python exercises/check.py --start makes it")
    prediction = written(page).get("Prediction", "")
    if not prediction:
        raise UserError(f"{page} has no prediction yet; write down what you expect, and why, before you look")
    args.prediction, args.hash = prediction_hash(prediction), hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    try:
        EXERCISES[args.exercise](args, load(path))
    except (Wrong, NotImplementedError) as error:
        advice = f"python exercises/check.py {args.exercise} shows what is wrong"
        raise UserError(f"{path} does not work yet ({' '.join(str(error).split())[:200]}); {advice}") from error


if __name__ == "__main__":
    answer_mistakes(main)
