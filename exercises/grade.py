"""Marks a class for check.py: points for laws, for what a machine can check of a written answer, and equal answers.

A submission is a folder, named after its author, which holds what is in answers/: e1.py, e1.md and so on, and anywhere
below it the folders of the runs, of which config.json and result.json are needed.
"""

import ast
import csv
import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.errors import UserError
from support.tables import print_aligned

HEADINGS = ("Prediction", "Command", "Figures", "Explanation", "What would refute this")
FOR_LAWS, FOR_WRITING = 0.6, 0.4  # shares of an exercise's points


# ---- Written answers -------------------------------------------------------------------------------------------------


def written(path: Path) -> dict[str, str]:
    """What stands below each heading of a written answer, in single spaces, without <!-- comments -->."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    parts = re.split(r"^#+ +(.+)$", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {heading.strip(): " ".join(body.split()) for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def prediction_hash(prediction: str) -> str:
    """What run.py keeps in a run's config.json, so that no prediction is written after its figures."""
    return hashlib.sha256(prediction.encode()).hexdigest()[:16]


def runs_of(folder: Path, number: int) -> list[tuple[dict, dict]]:
    """The config.json and result.json of each run of an exercise that was handed in."""
    found = []
    for path in sorted(folder.rglob("config.json")):
        try:
            config, result = [
                json.loads(path.with_name(name).read_text("utf-8")) for name in (path.name, "result.json")
            ]
            config["settings"]["seed"], config["exercise"]["prediction"], result.values()  # what is looked at
            if config["exercise"]["number"] == number:
                found.append((config, result))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no run of run.py's
            continue
    return found


def missing_parts(answer: Path, folder: Path, number: int, seeds: int) -> list[str]:
    """Which of the four parts of a written answer that a machine can check are missing; its runs are below `folder`."""
    text, runs = written(answer), runs_of(folder, number)
    predictions = {str(config["exercise"]["prediction"]) for config, _ in runs}
    numbers = re.findall(r"\d+(?:\.\d+)?", text.get("Figures", ""))
    measured = [value for _, result in runs for value in result.values() if isinstance(value, int | float)]
    in_words = {f"{value:.{digits}f}" for value in measured for digits in (1, 2, 3)}
    holds = {
        "a heading": all(text.get(heading) for heading in HEADINGS),
        "the prediction before the run": predictions == {prediction_hash(text.get("Prediction", ""))},
        f"{seeds} seeds": len({str(config["settings"]["seed"]) for config, _ in runs}) >= seeds,
        "figures of its runs": len(numbers) >= 3 and not in_words.isdisjoint(numbers),
    }
    return [name for name in holds if not holds[name]]


# ---- Equal answers ---------------------------------------------------------------------------------------------------


class Rename(ast.NodeTransformer):
    """Gives the names that a file makes up numbers, in the order in which they appear, and drops what is not code."""

    def __init__(self, tree: ast.AST) -> None:
        self.own, self.numbers = set(), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                self.own.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.own.add(node.id)

    def number(self, name: str) -> str:
        return f"name{self.numbers.setdefault(name, len(self.numbers))}" if name in self.own else name

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.number(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.number(node.arg))  # without its type

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        return ast.keyword(node.arg, self.visit(node.value))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns = self.number(node.name), None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # a docstring

    def visit_Import(self, node: ast.AST) -> None:
        return None

    visit_ImportFrom = visit_Import


def tree_of(path: Path) -> str:
    """A fingerprint that is the same for two files that differ only in names, types, comments and layout."""
    try:
        tree = ast.parse(path.read_bytes())
        return hashlib.sha256(ast.dump(Rename(tree).visit(tree)).encode()).hexdigest()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


# ---- A class ---------------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """A folder's name as a cell: printable, and no formula to a spreadsheet."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"'{name}" if name[:1] in "=+-@" else name


def grade(known: dict, folder: Path, table: Path, salt: str, check: Callable) -> None:
    """Marks every folder in `folder`, prints the points and writes them as CSV: a row a name, points a column.

    `check(exercise, path, seed)` makes a report. Random inputs follow from salt, name and exercise.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give --grade one that holds a folder for each name")
    people = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = {path: path / "answers" if (path / "answers").is_dir() else path for path in people}
    with open(table, "w", newline="", encoding="utf-8") as file:  # before the work: it must be writable
        tasks = [(person, exercise) for person in people for exercise in known.values()]

        def marked(task: tuple) -> tuple:
            person, exercise = task
            seed = int(hashlib.sha256(os.fsencode(f"{salt}/{person.name}/{exercise.number}")).hexdigest()[:8], 16)
            report = check(exercise, places[person] / f"e{exercise.number}.py", seed)
            answer, seeds = places[person] / f"e{exercise.number}.md", getattr(exercise.laws, "SEEDS", 3)
            return report, missing_parts(answer, person, exercise.number, seeds)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(tasks, pool.map(marked, tasks), strict=True))
        rows = [["name", *(f"e{number}" for number in known), "total", "remarks"]]
        rows += [row(person, known.values(), found) for person in people]
        csv.writer(file).writerows(rows)
    print_aligned(rows)
    print(f"salt {salt}; {table} has the same table; equal answers may be short ones: read them")


def row(person: Path, exercises: list, found: dict) -> list[str]:
    """The row of one name."""
    points, remarks = [], []
    for exercise in exercises:
        report, missing = found[person, exercise]
        points.append(exercise.points * (FOR_LAWS * report.share + FOR_WRITING * (1 - len(missing) / 4)))
        if report.mistake:
            remarks.append(f"e{exercise.number}: {report.mistake}")
        twins = [
            plain(other.name)
            for (other, same), (theirs, _) in found.items()
            if same is exercise and other != person and theirs.tree == report.tree != ""
        ]
        if twins:
            remarks.append(f"e{exercise.number}: equal to {', '.join(twins)}")
        if 0 < len(missing) < 4:
            remarks.append(f"e{exercise.number}: lacks {', '.join(missing)}")
    return [plain(person.name), *(f"{value:.1f}" for value in points), f"{sum(points):.1f}", "; ".join(remarks)]
