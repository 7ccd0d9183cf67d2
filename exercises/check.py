"""Checks the exercises: shows how far you are and what comes next, tests the laws of one, marks a class.

    python exercises/check.py --start          # stubs and answer templates into answers/
    python exercises/check.py                  # the table, the next exercise, its page
    python exercises/check.py 4                # the laws of exercise 4
    python exercises/check.py 4 --hint         # the next of its three hints; counted, never punished
    python exercises/check.py --grade SUBMISSIONS --csv scores.csv --salt 2026

Exit status 0: all laws hold; 1: some do not, or are not begun; 2: misuse. --grade runs strangers' code: see README.md
beside this file.
"""

import json
import os
import secrets
import sys
import textwrap
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from examine import ROOT, Exercise, Report, examine, exercises  # puts the repository's root on the path
from grade import HEADINGS, grade, written

from support.arguments import Parser, number_from
from support.errors import UserError, answer_mistakes
from support.tables import print_aligned

# ---- What a learner sees ---------------------------------------------------------------------------------------------


def short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def print_report(exercise: Exercise, path: Path, report: Report) -> None:
    """What was found, law by law."""
    print(f"exercise {exercise.number}, {exercise.title} ({exercise.time}): {short(path)}")
    if not (report.lines or report.mistake):
        print(f"  -      not begun: its page is exercises/{exercise.page.name}")
    if report.mistake:
        print(f"  WRONG  {wrapped(report.mistake)}")
    for line in report.lines:
        if line.state == "waits":
            continue
        print(f"  {'-' if line.state == 'not begun' else line.state:6} {wrapped(line.law)}")
        if line.sentence:
            print(f"         {wrapped(line.sentence)}")
        waiting = sum(other.state == "waits" and other.sentence == line.law for other in report.lines)
        if waiting:
            print(f"  -      {waiting} more {'law waits' if waiting == 1 else 'laws wait'} for this one")
    if report.printed:
        print(f"it printed:\n{textwrap.indent(report.printed.rstrip(), '  ')}")


def wrapped(text: str) -> str:
    """A text of several lines that begins after nine letters."""
    indent = " " * 9
    return textwrap.fill(text, 119, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)[9:]


def show_table(known: dict[int, Exercise], folder: Path, seconds: float | None) -> bool:
    """Prints where each exercise stands, and the page of the next one. Returns whether all laws hold."""
    rows, next_one = [["", "exercise", "time", "points", "laws", "written"]], None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(
            lambda exercise: examine(exercise, folder / f"e{exercise.number}.py", 0, seconds), known.values()
        )
    for (number, exercise), report in zip(known.items(), reports, strict=True):
        filled = sum(bool(written(folder / f"e{number}.md").get(heading)) for heading in HEADINGS)
        rows.append([str(number), exercise.title, exercise.time, str(exercise.points), report.state, f"{filled} of 5"])
        if report.state != "holds" and next_one is None:
            next_one = exercise
    print_aligned(rows)
    if next_one is None:
        print("all laws hold; the open questions are judged by people (exercises/README.md)")
        return True
    if not folder.is_dir():
        print("begin with: python exercises/check.py --start")
    print(f"next: python exercises/check.py {next_one.number}\n\n{next_one.page.read_text('utf-8').rstrip()}")
    return False


def show_one(exercise: Exercise, folder: Path, seconds: float | None) -> bool:
    """Prints the laws of one exercise, and how to get a hint. Returns whether all hold."""
    path = folder / f"e{exercise.number}.py"
    report = examine(exercise, path, 0, seconds)
    print_report(exercise, path, report)
    if report.state == "holds":
        print(f"all {len(report.lines)} laws hold; now the open question, at the end of exercises/{exercise.page.name}")
        return True
    number = min(hints_given(folder).get(str(exercise.number), 0), 2) + 1
    print(f"hint {number} of 3: python exercises/check.py {exercise.number} --hint")
    return False


def hints_given(folder: Path) -> dict[str, int]:
    """How many hints of each exercise were asked for."""
    try:
        found = json.loads((folder / ".hints.json").read_text("utf-8"))
        return {number: int(count) for number, count in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def show_hint(exercise: Exercise, folder: Path) -> None:
    """Prints the next hint; after the third, all of them."""
    given = hints_given(folder)
    count = min(given.get(str(exercise.number), 0) + 1, 4)
    for number in range(1, 4) if count == 4 else [count]:
        print(f"hint {number} of 3: {exercise.laws.HINTS[number - 1]}")
    folder.mkdir(exist_ok=True)
    (folder / ".hints.json").write_text(json.dumps(given | {str(exercise.number): min(count, 3)}), "utf-8")


def start(known: dict[int, Exercise], folder: Path) -> None:
    """Copies stubs and answer templates, and never overwrites."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, exercise in known.items():
        template = f"# Exercise {number}: {exercise.title}\n" + "".join(f"\n## {heading}\n" for heading in HEADINGS)
        for name, text in {f"e{number}.py": exercise.stub.read_text("utf-8"), f"e{number}.md": template}.items():
            if (folder / name).exists():
                print(f"kept   {short(folder / name)}")
            else:
                (folder / name).write_text(text, "utf-8")
                print(f"wrote  {short(folder / name)}")
    print("next: python exercises/check.py")


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_arguments(words: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("exercise", nargs="?", type=int, metavar="N", help="The number of an exercise.")
    parser.add_argument("--hint", action="store_true", help="Print the next hint of exercise N.")
    parser.add_argument("--start", action="store_true", help="Copy stubs and answer templates; nothing is overwritten.")
    parser.add_argument("--grade", metavar="DIR", help="Mark the folders in DIR, one for each name.")
    parser.add_argument("--csv", metavar="FILE", help="With --grade: a file with a row for each name.")
    parser.add_argument(
        "--salt", help="With --grade: random inputs follow from it and the name. Default: another each time."
    )
    parser.add_argument(
        "--limit",
        type=number_from(float, 1),
        help="Seconds for one answer. Default: 120, more where a call may take long.",
    )
    parser.add_argument(
        "--answers",
        default=ROOT / "answers",
        type=Path,
        metavar="DIR",
        help="The folder of the answers. Default: answers.",
    )
    args = parser.parse_args(words)
    if (args.exercise is not None) + args.start + (args.grade is not None) > 1:
        raise UserError("one thing at a time: an exercise's number, --start or --grade")
    if args.hint and args.exercise is None:
        raise UserError("a hint of which exercise? python exercises/check.py N --hint")
    if (args.grade is None) != (args.csv is None) or (args.salt and args.grade is None):
        raise UserError("--grade DIR and --csv FILE go together, and --salt with them")
    return args


def main(words: list[str] | None = None) -> int:
    """Does what is asked for; returns the exit status."""
    args, known = parse_arguments(words), exercises()
    if args.exercise is not None and args.exercise not in known:
        raise UserError(f"there is no exercise {args.exercise}; choose one of {', '.join(map(str, known))}")
    try:
        if args.grade is not None:
            salt = secrets.token_hex(4) if args.salt is None else args.salt
            grade(known, Path(args.grade), Path(args.csv), salt, partial(examine, seconds=args.limit))
            return 0
        if args.start:
            start(known, args.answers)
            return 0
        if args.hint:
            show_hint(known[args.exercise], args.answers)
            return 0
        if args.exercise is not None:
            return 0 if show_one(known[args.exercise], args.answers, args.limit) else 1
        return 0 if show_table(known, args.answers, args.limit) else 1
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    answer_mistakes(lambda: sys.exit(main()))
