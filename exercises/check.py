"""Checks the exercises: shows how far you are and what comes next, tests the laws of one, or marks a class.

    python exercises/check.py --start          # Copies stubs and answer templates into answers/.
    python exercises/check.py                  # Shows the table and the page of the next exercise.
    python exercises/check.py 4                # Tests the laws of exercise 4.
    python exercises/check.py 4 --hint         # Shows the next of three hints. They are counted but cost nothing.
    python exercises/check.py --grade SUBMISSIONS --csv scores.csv --salt 2026

The exit status is 0 if all laws hold, 1 if some fail or are not begun, and 2 for a wrong command. --grade runs
strangers' code: see exercises/README.md.
"""

import csv
import hashlib
import json
import math
import os
import re
import secrets
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

# The first import puts the repository's root on the path.
from examine import MEMORY, ROOT, Exercise, Report, beginning, examine, exercises

from support.arguments import Parser
from support.errors import UserError, answer_mistakes
from support.files import replacing
from support.tables import print_aligned

# ---- What a learner sees ---------------------------------------------------------------------------------------------


def wrapped(text: str) -> str:
    """Wraps a text, and indents all lines but the first by nine letters."""
    indent = " " * 9
    return textwrap.fill(text, 119, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)[9:]


def print_report(exercise: Exercise, path: Path, report: Report) -> None:
    """Prints what was found, law by law."""
    print(f"exercise {exercise.number}, {exercise.title} ({exercise.time}): {path}")
    if report.mistake:
        print(f"  WRONG  {wrapped(report.mistake)}")
    elif not report.lines:
        print(f"  -      not begun: its page is exercises/{exercise.page.name}")
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
        print(f"your file printed:\n{textwrap.indent(report.printed.rstrip(), '  ')}")


def show_table(known: dict[int, Exercise], folder: Path) -> bool:
    """Prints where each exercise stands, and the page of the next one. Returns whether all laws hold."""
    with ThreadPoolExecutor(workers()) as pool:
        paths = [folder / f"e{number}.py" for number in known]
        reports = list(pool.map(partial(examine, seed=0), known.values(), paths))
    rows, left = [["", "exercise", "time", "points", "laws", "written"]], []
    for (number, exercise), report in zip(known.items(), reports, strict=True):
        filled = sum(bool(written(folder / f"e{number}.md").get(heading)) for heading in HEADINGS)
        rows.append([str(number), exercise.title, exercise.time, str(exercise.points), report.state, f"{filled} of 5"])
        if report.state != "holds":
            left.append(exercise)
    print_aligned(rows)
    if not folder.is_dir():
        print("begin with: python exercises/check.py --start")
    if left:
        print(f"next: python exercises/check.py {left[0].number}\n\n{left[0].page.read_text('utf-8').rstrip()}")
    else:
        print("all laws hold; the open questions are judged by people (exercises/README.md)")
    return not left


def show_one(exercise: Exercise, folder: Path) -> bool:
    """Prints the laws of one exercise, and how to get a hint. Returns whether all hold."""
    path = folder / f"e{exercise.number}.py"
    report = examine(exercise, path, 0)
    print_report(exercise, path, report)
    if report.state == "holds":
        print(f"all {len(report.lines)} laws hold; now answer the open question in exercises/{exercise.page.name}")
        return True
    number = min(hints_given(exercise, folder), 2) + 1
    print(f"hint {number} of 3: python exercises/check.py {exercise.number} --hint")
    return False


def hints_given(exercise: Exercise, folder: Path) -> int:
    """Returns how many hints for an exercise were shown. The file has a word for each."""
    return beginning(folder / ".hints").split().count(str(exercise.number))


def show_hint(exercise: Exercise, folder: Path) -> None:
    """Prints the next hint; after the third, all of them."""
    given = hints_given(exercise, folder)
    for number in range(3) if given >= 3 else [given]:
        print(f"hint {number + 1} of 3: {exercise.laws.HINTS[number]}")
    folder.mkdir(exist_ok=True)
    with open(folder / ".hints", "a", encoding="utf-8") as file:
        print(exercise.number, file=file)


def start(known: dict[int, Exercise], folder: Path) -> None:
    """Copies stubs and answer templates, and overwrites nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, exercise in known.items():
        template = f"# Exercise {number}: {exercise.title}\n" + "".join(f"\n## {heading}\n" for heading in HEADINGS)
        for name, text in {f"e{number}.py": exercise.stub.read_text("utf-8"), f"e{number}.md": template}.items():
            is_there = (folder / name).exists()
            if not is_there:
                (folder / name).write_text(text, "utf-8")
            print(f"{'kept' if is_there else 'wrote':6} {folder / name}")
    print("next: python exercises/check.py")


# ---- Written answers -------------------------------------------------------------------------------------------------

NO_FIGURES = ("teacher_top1", "train_seconds", "images_per_s")  # They do not show that somebody has looked.
HEADINGS = ("Prediction", "Command", "Figures", "Explanation", "What would refute this")


def written(path: Path) -> dict[str, str]:
    """Returns the text below each heading of a written answer, with single spaces, without <!-- comments -->."""
    text, *commented = beginning(path).split("<!--")
    text += "".join(part.partition("-->")[2] for part in commented)
    known = {heading.lower(): heading for heading in HEADINGS}  # All else is text: sub-headings, comments in code.
    parts = re.split(rf"^#+ +({'|'.join(HEADINGS)})[ .:?!]*$", text, flags=re.MULTILINE | re.IGNORECASE)
    bodies = zip(parts[1::2], parts[2::2], strict=True)
    return {known[heading.lower()]: " ".join(body.split()) for heading, body in bodies}


def prediction_hash(prediction: str) -> str:
    """Returns the hash that run.py writes into config.json. It shows whether a prediction was changed afterwards."""
    return hashlib.sha256(prediction.encode()).hexdigest()[:16]


def runs_of(folder: Path, number: int) -> list[tuple[str, str, list[float]]]:
    """Returns the seed, the prediction's hash and the figures of each submitted run of an exercise."""
    found = []
    for path in sorted(folder.rglob("config.json")):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # It is not a run.
            config, result = [json.loads(beginning(path.with_name(name))) for name in (path.name, "result.json")]
            figures = [value for name, value in result.items() if isinstance(value, float) and name not in NO_FIGURES]
            if config["exercise"]["number"] == number:
                found.append((str(config["settings"]["seed"]), str(config["exercise"]["prediction"]), figures))
    return found


def missing_parts(answer: Path, folder: Path, number: int) -> list[str]:
    """Returns which of four parts a written answer lacks, as far as a machine can tell. `folder` has its runs."""
    text, runs = written(answer), runs_of(folder, number)
    numbers = re.findall(r"\d+(?:\.\d+)?", text.get("Figures", ""))
    in_words = {f"{value:.{digits}f}" for *_, figures in runs for value in figures for digits in (1, 2, 3)}
    holds = {
        "a heading": all(text.get(heading) for heading in HEADINGS),
        "the prediction before the run": {sealed for _, sealed, _ in runs}
        == {prediction_hash(text.get("Prediction", ""))},
        "three seeds": len({seed for seed, *_ in runs}) >= 3,
        "figures from its runs": len(numbers) >= 3 and not in_words.isdisjoint(numbers),
    }
    return [name for name in holds if not holds[name]]


# ---- A class ---------------------------------------------------------------------------------------------------------


def workers() -> int:
    """Returns how many answers can be checked at once with the cores and memory of this machine or container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf.
        memory.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # A container has one of these files.
        with suppress(OSError, ValueError):  # Without a limit, the file says "max".
            memory.append(int(Path("/sys/fs/cgroup", name).read_text("utf-8")))
    return int(max(1, min(cores, min(memory) // MEMORY - 1)))  # One share is for this process.


def plain(text: str) -> str:
    """Makes a text fit for a cell: it is printable, and no spreadsheet takes it for a formula."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:1000])
    return f"'{text}" if text[:1] in tuple("=+-@") else text


FOR_LAWS, FOR_WRITING = 0.6, 0.4  # These are shares of an exercise's points.


def grade(known: dict, folder: Path, table: Path, salt: str, check: Callable) -> None:
    """Marks every folder in `folder`, prints the points, and writes them as CSV: a row for each name.

    `check(exercise, path, seed)` returns a report. Salt, name and exercise determine the random inputs. The file
    `table` is replaced only when the new table is complete.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give --grade a folder that holds one folder for each name")
    people = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    with replacing(table) as temporary, ThreadPoolExecutor(workers()) as pool:
        tasks = [(person, exercise, salt, check) for person in people for exercise in known.values()]
        marks = dict(zip([task[:2] for task in tasks], pool.map(mark, *zip(*tasks, strict=True)), strict=True))
        rows = [["name", *(f"e{number}" for number in known), "total", "remarks"]]
        for person in people:
            points, remarks = zip(*(marks[person, exercise] for exercise in known.values()), strict=True)
            remarks = "; ".join(filter(None, remarks)) or ("" if any(points) else "no answers found")
            rows.append([person.name, *(f"{value:.1f}" for value in points), f"{sum(points):.1f}", remarks])
        rows = [[plain(cell) for cell in row] for row in rows]
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    print_aligned(rows)
    print(f"salt {salt}; {table} holds the same table")


def mark(person: Path, exercise: object, salt: str, check: Callable) -> tuple[float, str]:
    """Returns one person's points and remarks for one exercise. No submission can stop the marking of the others."""
    number = exercise.number
    place = person / "answers" if (person / "answers").is_dir() else person
    try:
        seed = int(hashlib.sha256(os.fsencode(f"{salt}/{person.name}/{number}")).hexdigest()[:8], 16)
        report = check(exercise, place / f"e{number}.py", seed)
        missing = missing_parts(place / f"e{number}.md", person, number)
    except Exception as error:
        return 0.0, f"e{number}: could not be marked; look at it yourself ({type(error).__name__})"
    lacks = f"lacks {', '.join(missing)}" if 0 < len(missing) < 4 else ""
    remarks = " ".join(filter(None, [report.mistake, lacks]))
    points = exercise.points * (FOR_LAWS * report.share + FOR_WRITING * (1 - len(missing) / 4))
    return points, f"e{number}: {remarks}" if remarks else ""


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_arguments(words: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("exercise", nargs="?", type=int, metavar="N", help="The number of an exercise.")
    add("--hint", action="store_true", help="Print the next hint for exercise N.")
    add("--start", action="store_true", help="Copy stubs and answer templates. Nothing is overwritten.")
    add("--grade", metavar="DIR", help="Mark the folders in DIR, one for each name.")
    add("--csv", metavar="FILE", help="With --grade: the file to write, with a row for each name.")
    add("--salt", help="With --grade: it determines the random inputs, with the name. Default: a random one.")
    add("--answers", default=ROOT / "answers", type=Path, metavar="DIR", help="The answers' folder. Default: answers.")
    args = parser.parse_args(words)
    if (args.exercise is not None) + args.start + (args.grade is not None) > 1:
        raise UserError("one thing at a time: give an exercise's number, --start or --grade")
    if args.hint and args.exercise is None:
        raise UserError("a hint for which exercise? use python exercises/check.py N --hint")
    if (args.grade is None) != (args.csv is None) or (args.salt and args.grade is None):
        raise UserError("--grade DIR and --csv FILE go together, and --salt needs both")
    return args


def main(words: list[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    args, known = parse_arguments(words), exercises()
    if args.exercise is not None and args.exercise not in known:
        raise UserError(f"there is no exercise {args.exercise}; choose one of {', '.join(map(str, known))}")
    exercise, holds = known.get(args.exercise), True
    try:
        if args.grade is not None:
            salt = secrets.token_hex(4) if args.salt is None else args.salt
            grade(known, Path(args.grade), Path(args.csv), salt, examine)
        elif args.start:
            start(known, args.answers)
        elif args.hint:
            show_hint(exercise, args.answers)
        elif exercise:
            holds = show_one(exercise, args.answers)
        else:
            holds = show_table(known, args.answers)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return 0 if holds else 1


if __name__ == "__main__":
    answer_mistakes(lambda: sys.exit(main()))
