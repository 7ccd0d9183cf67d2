"""The table of arXiv 2605.07191: what each teacher's attention is worth, as gains over a baseline of the same seed."""

import csv
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from support import runs
from support.errors import UserError
from support.files import replacing


class Result(NamedTuple):
    """A finished run, as a table sees it."""

    place: tuple[int, ...]  # the numbers of family and teacher in the registry
    family: str
    teacher: str  # A baseline serves all teachers of this name, whether their weights are trained or random.
    title: str  # what the table calls the teacher
    conditions: tuple[tuple[str, Any, Any], ...]  # what runs must share: name, value, and what to compare instead
    column: str  # "baseline", or the method with its student and variants
    seed: int
    top1: float  # in percent
    teacher_top1: float | None  # in percent, where the teacher's task is the student's


def result_of(folder: str | Path) -> Result:
    """A finished run on disk as a table sees it."""
    config, result = runs.read_config(folder), runs.read_result(folder)
    if "exercise" in config:
        raise UserError(f"{folder} had a learner's function in it, without which its student is another one")
    table, settings = config["table"], config["settings"]
    return Result(
        place=tuple(table["place"]),
        family=table["family"],
        teacher=settings["teacher"],
        title=table["title"],
        conditions=tuple((name, *pair) for name, pair in table["conditions"].items()),
        column=table["column"],
        seed=settings["seed"],
        top1=result.get("ema_top1", result["top1"]),
        teacher_top1=result.get("teacher_top1"),
    )


# The rows of a table, by family and title of the teacher. A row holds, by column, accuracies in percent or gains over
# the baseline in points, one for each seed.
Rows = dict[tuple[str, str], dict[str, list[float]]]

# Tables by what the runs of each share, as (name, value), as far as a title shows it.
Tables = dict[tuple[tuple[str, Any], ...], Rows]
COLUMNS = ["its top-1", "baseline", "copy", "distill", "native copy", "native distill", "native baseline"]
ACCURACIES = ("its top-1", "baseline")  # columns that are no gains
LEGEND = """
Top-1 of the teacher, where its task is the student's, and of the baseline, in percent; then gains over the baseline of
the same seed, in points. Mean ± standard deviation over seeds. **Bold**: a failure. Of a run that kept a moving average
of its weights (ema), it is the average's accuracy."""


def compare(results: list[Result]) -> Tables:
    """Tables, each of runs that can be compared. The title of each holds all in which two of them differ."""
    if not results:
        raise UserError("no finished runs are there; train.py makes them, and names their folder with --out")
    # Where all runs have the same value, it is compared, and else what is to be compared instead.
    values = {}
    for result in results:
        for name, value, _ in result.conditions:
            values.setdefault(name, set()).add(value)
    groups = {}  # the runs of each table, by what they share
    for result in sorted(results, key=lambda result: (result.place, result.title)):
        own = [(name, other if len(values[name]) > 1 else value) for name, value, other in result.conditions]
        groups.setdefault(tuple(own), []).append(result)
    differ = [together[0][0] for together in zip(*groups, strict=True) if len(set(together)) > 1]
    tables = {}
    for conditions, group in groups.items():
        always = ("data", "img_size", "epochs", *differ)
        shown = tuple((name, value) for name, value in conditions if name in always or (name == "ema" and value))
        tables[shown] = rows_of(group)
    return tables


def rows_of(results: list[Result]) -> Rows:
    """The rows of one table. A run without a baseline of its seed has no gain; its accuracy is printed."""
    rows: Rows = {}
    for result in results:
        row = rows.setdefault((result.family, result.title), {})
        baselines = {r.seed: r.top1 for r in results if r.column == "baseline" and r.teacher == result.teacher}
        row["baseline"] = list(baselines.values())
        if result.teacher_top1 is not None:
            row["its top-1"] = [result.teacher_top1]
        if result.seed not in baselines:
            advice = "no baseline of that seed here: --mode baseline trains one, `eval.py table` compares all"
            print(f"{result.title}, {result.column}, seed {result.seed}: top-1 {result.top1:.1f}, and {advice}")
        elif result.column != "baseline":
            row.setdefault(result.column, []).append(result.top1 - baselines[result.seed])
    return rows


def columns_of(rows: Rows) -> list[str]:
    """The columns that some row has, the usual ones first."""
    having = {name for row in rows.values() for name, values in row.items() if values}
    return [name for name in COLUMNS if name in having] + sorted(having - set(COLUMNS))


def cell(column: str, values: list[float]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    text = f"{mean:{'' if column in ACCURACIES else '+'}.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return f"**{text}**" if mean < 0 else text


def print_aligned(lines: list[list[str]]) -> None:
    """Prints rows of cells, the first of which is the header, as Markdown with columns as wide as what they hold."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in [lines[0], ["-" * width for width in widths], *lines[1:]]:
        print(f"| {' | '.join(map(str.ljust, line, widths))} |")


def title_of(shared: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shared)


def print_tables(tables: Tables) -> None:
    for shared, rows in tables.items():
        columns = columns_of(rows)
        lines = [["family", "teacher", *columns]]
        for names, row in rows.items():
            lines.append([*names, *(cell(column, row.get(column, [])) for column in columns)])
        print(f"\n### {title_of(shared)}\n")
        print_aligned(lines)
    print(LEGEND)


def line_of(folder: Path, result: Result) -> dict:
    """A run as a line of the CSV file: its settings but the incidental ones, the commit of its code, its accuracy."""
    config = runs.read_config(folder)
    line = {name: value for name, value in config["settings"].items() if name not in config["incidental"]}
    return line | {"commit": config["versions"]["commit"], "top1": result.top1, "teacher_top1": result.teacher_top1}


def write_csv(lines: list[dict], path: str) -> None:
    """A line for each run: what it is, all else in which two runs differ, and what was found."""
    always = ("teacher", "mode", "method", "student", "seed", "top1", "commit")
    columns = []
    for name in lines[0]:
        values = {line[name] for line in lines}
        if name in always or len(values) > 1:
            columns.append(name)
    with replacing(Path(path)) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"written: {path}")
