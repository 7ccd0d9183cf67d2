"""Runs the experiment of an exercise with a learner's function in it: predict, then look.

    python exercises/run.py 4 --radius 0 1 3 -- --mode transfer --method copy --seed 0 1 2

Words before `--` are for the exercise, words after it are for train.py. Nothing starts while the heading "Prediction"
of the written answer is empty. The runs, below runs/exercises, are never mistaken for ordinary ones: config.json names
the exercise, and eval.py's table and accuracy refuse them. They use the CPU unless a --device is given.
"""

import hashlib
import shlex
import statistics
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from check import prediction_hash, written
from examine import HERE, ROOT, load  # This puts the repository's root on the path.
from kit import Finding, Trial, Wrong
from torch import nn
from tqdm import tqdm

import train
from model import ViT
from support import runs
from support.arguments import Parser
from support.errors import UserError, answer_mistakes
from support.processes import Processes

# ---- Training with a learner's function ------------------------------------------------------------------------------


def train_grid(args: Namespace, trial: Trial) -> list[Path]:
    """Trains the runs of a trial that are not finished, and prints their results. Returns the runs' folders."""
    plan = train.plan_runs(train.parse_arguments(["--device", "cpu", *trial.words]))
    processes, folders = Processes(plan[0].device), []

    def changed(settings: train.Settings, student: ViT, its_teacher: ViT | None) -> nn.Module:
        transfer = train.build_model(settings, student, its_teacher)
        if settings.method is not None and trial.change is not None:
            trial.change(transfer)
        return transfer

    for settings in plan:
        folder = args.out / trial.label.replace(", ", "-").replace(" ", "-") / train.describe(settings)["name"]
        folders.append(folder)
        # If the answer has changed, the run starts over. If the prediction has changed, the run keeps the first one.
        has_run = (folder / "config.json").is_file()
        is_old = (
            has_run
            and runs.read_json(folder / "config.json", {"exercise"})["exercise"]["answer"] != args.record["answer"]
        )
        if "--fresh" in trial.words or is_old:
            runs.clear(folder, processes)
        images, its_teacher = train.build_data(settings), None
        if settings.needs_teacher:
            its_teacher = trial.teacher or train.build_teacher(settings)
        student = (trial.build_student or train.build_student)(settings, len(images.classes), its_teacher)
        run = train.Training(settings, images, student, its_teacher, processes, changed)
        command = shlex.join(["python", "exercises/run.py", *args.record["arguments"]])
        config = train.config_of(run, command) | {"exercise": args.record}
        with runs.begin(folder, config, processes) as is_left:
            if is_left:
                with tqdm(total=run.steps, desc=f"{trial.label} {folder.name}", unit="step") as bar:
                    train.train(run, folder, bar)
                args.trained.append(folder)

    # This is top-1 on held-out images (mean, standard deviation, each seed's), and on training images at the end.
    held_out = [runs.read_result(folder)["top1"] for folder in folders]
    training = statistics.mean(runs.read_log(folder)[-1]["top1"] for folder in folders)
    spread = f" ± {statistics.stdev(held_out):.1f}" if len(held_out) > 1 else ""
    each = ", ".join(f"{top1:.1f}" for top1 in held_out)
    figures = f"top-1 {statistics.mean(held_out):.1f}{spread} ({each}), on training images {training:.1f}"
    print(f"{trial.label:24} {figures}: {folders[0].parent}")
    return folders


def note(args: Namespace, finding: Finding) -> None:
    """Writes a finding as a run. As long as the answer is the same, the first prediction stays."""
    folder, record = args.out / finding.name, args.record
    if (folder / "config.json").is_file():
        held = runs.read_json(folder / "config.json", {"exercise"})["exercise"]
        record = held if held["answer"] == record["answer"] else record
    runs.write_json(folder / "config.json", {"settings": finding.settings, "exercise": record})
    runs.write_json(folder / "result.json", finding.result)


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_arguments(words: list[str] | None = None) -> Namespace:
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(description=__doc__)
    exercises = parser.add_subparsers(dest="exercise", required=True, parser_class=Parser, metavar="N")
    for path in sorted((HERE / "experiments").glob("e*.py")):
        experiment = import_module(f"experiments.{path.stem}")
        one = exercises.add_parser(path.stem[1:], help=experiment.__doc__, description=experiment.__doc__)
        one.set_defaults(experiment=experiment)
        if hasattr(experiment, "add_arguments"):
            experiment.add_arguments(one.add_argument)
        one.add_argument("--answers", type=Path, default=ROOT / "answers", metavar="DIR", help="Default: answers.")
    args = parser.parse_args(words[:cut])
    args.words, args.train = words, words[cut + 1 :]
    args.out = Path(train.parse_arguments(args.train).out, "exercises", f"e{args.exercise}")  # This also checks them.
    return args


def watched(answer: ModuleType, laws: ModuleType, calls: list[str]) -> ModuleType:
    """Makes each function and class that an exercise asks for note its calls. Raises `Wrong` if one is missing."""

    def noting(name: str, function: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*given, **named)

        return call

    for name in [*laws.RETURNS, *getattr(laws, "LAYER", [])]:
        found = getattr(answer, name, None)
        if not callable(found):
            raise Wrong(f"there is no {name} in the file")
        if isinstance(found, type):
            found.__init__ = noting(name, found.__init__)
        else:
            setattr(answer, name, noting(name, found))
    return answer


def main(words: list[str] | None = None) -> None:
    args = parse_arguments(words)
    path, page = (args.answers / f"e{args.exercise}.{suffix}" for suffix in ("py", "md"))
    if not path.is_file():
        raise UserError(f"{path} is missing; python exercises/check.py --start creates it")
    prediction = written(page).get("Prediction", "")
    if not prediction:
        raise UserError(f"{page} has no prediction yet; write down what you expect, and why, before you look")
    code = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    sealed = prediction_hash(prediction)
    args.record = {"number": int(args.exercise), "arguments": args.words, "prediction": sealed, "answer": code}
    args.trained, calls, calls_in_training = [], [], 0
    try:
        answer = watched(load(path), import_module(f"laws.e{args.exercise}"), calls)
        for step in args.experiment.run(args, answer):
            if isinstance(step, Finding):
                note(args, step)
                continue
            before = len(calls)
            args.folders = train_grid(args, step)  # The experiment may look at them next.
            calls_in_training += len(calls) - before
    except Exception as error:
        is_the_answers = any(frame.filename == str(path) for frame in traceback.extract_tb(error.__traceback__))
        if isinstance(error, UserError) or not (is_the_answers or isinstance(error, Wrong)):
            raise
        advice = f"python exercises/check.py {args.exercise} shows what is wrong"
        raise UserError(f"{path} does not work yet ({' '.join(str(error).split())[:200]}); {advice}") from error
    if args.trained and not calls_in_training:  # They are ordinary runs, and do not count.
        for folder in args.trained:
            runs.clear(folder, Processes("cpu"))
        raise UserError("your function was never called: with these words, train.py trains the same without it")


if __name__ == "__main__":
    answer_mistakes(main)
