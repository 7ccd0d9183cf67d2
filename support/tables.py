"""This module makes the tables of arXiv 2605.07191: the gain of each teacher over the baseline of the same seed."""

import csv
import statistics
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from support import runs
from support.errors import UserError
from support.files import replacing

# Runs that share a table agree in these, besides the settings. Sets of images are identified by fingerprints.
MADE_OF = ("train_set", "val_set", "precision")


@dataclass(frozen=True)
class Result:
    """A finished run as a table sees it. Two results are equal if their runs differ in accuracy at most."""

    place: tuple  # These are the numbers of family and teacher in the registry.
    family: str
    teacher: str  # A baseline serves all teachers of this name, whether their weights are trained or random.
    title: str  # The table calls the teacher by this name.
    conditions: tuple  # Each is (name, value, other). Values are compared, or the others if the values differ.
    column: str  # This is "baseline", or the method with its student and variants.
    seed: int
    weights: str | None  # This is the fingerprint of the teacher's weights. A baseline has none.
    top1: float = field(compare=False)  # in percent
    last_top1: float | None = field(compare=False)  # This is for the last weights, if top1 is for an average.
    teacher_top1: float | None = field(compare=False)  # This is in percent, or None if the teacher has another task.


def result_of(folder: str | Path) -> Result:
    """Reads a finished run from its folder."""
    config, result = runs.read_true_config(folder), runs.read_result(folder)
    table, settings, made_of = config["table"], config["settings"], config["made_of"]
    try:
        table["place"] = tuple(table["place"])
        conditions = table["conditions"] | {name: [made_of[name]] * 2 for name in MADE_OF}
        table["conditions"] = tuple((name, *pair) for name, pair in conditions.items())
        return Result(
            **table,
            teacher=settings["teacher"],
            seed=settings["seed"],
            weights=made_of["teacher_weights"],
            top1=result.get("ema_top1", result["top1"]),
            last_top1=result["top1"] if "ema_top1" in result else None,
            teacher_top1=result.get("teacher_top1"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} comes from another version; move it, or train with --fresh") from error


# The key of a row is the teacher's family and title. A row holds, by column, accuracies in percent or gains over the
# baseline in points, one for each seed.
Rows = dict[tuple, dict]
Tables = dict[tuple, Rows]  # The key of a table is its title: pairs of name and value that its runs share.

COLUMNS = ["its top-1", "baseline", "copy", "distill", "native copy", "native distill", "native baseline"]
ACCURACIES = ("its top-1", "baseline")  # The other columns are gains.
LEGEND = """
Columns: top-1 accuracy of the teacher, if it has the student's task, and of the baseline, in percent; then gains over
the baseline of the same seed, in points. Cells: mean ± standard deviation over seeds. **Bold** marks a failure. If a
run has a moving average of its weights (ema), the accuracy is that of the average."""


def compare(results: list) -> Tables:
    """Makes tables, each from runs that can be compared. The titles name everything in which tables differ."""
    if not results:
        raise UserError("there are no finished runs; train.py makes them, in the folder given by --out")
    results = sorted(results, key=attrgetter("place", "title"))
    titles = [[] for _ in results]
    conditions = [{name: pair for name, *pair in result.conditions} for result in results]
    for name in dict.fromkeys(name for held in conditions for name in held):
        # A run from a version without this setting is kept apart.
        values, others = zip(*(held.get(name, ("unknown", "unknown")) for held in conditions), strict=True)
        compared = values if len(set(values)) == 1 else others
        is_shown = name in ("data", "img_size", "epochs") or len(set(compared)) > 1
        if name in MADE_OF:  # These are shown only if different runs would seem equal.
            told = list(map(tuple, titles))
            is_shown = len(set(zip(told, compared, strict=True))) > len(set(told))
        for title, value in zip(titles, compared, strict=True):
            if is_shown or (name == "ema" and value):
                title.append((name, value))
    groups = {}  # These are the runs of each table, by title.
    for title, result in zip(titles, results, strict=True):
        groups.setdefault(tuple(title), []).append(result)
    return {title: rows_of(group) for title, group in groups.items()}


def rows_of(results: list) -> Rows:
    """Makes the rows of one table. A run without a baseline of its seed has no gain; only its accuracy is printed."""
    rows = {}
    weights = {}  # These are the fingerprints of teachers by title. If a title has several, each gets its own row.
    for result in results:
        weights.setdefault(result.title, {result.weights}).add(result.weights)
    transferred = {result.teacher for result in results if result.column != "baseline"}
    for result in results:
        title = result.title
        if result.weights and len(weights[title] - {None}) > 1:
            title = f"{title} (weights {result.weights})"
        name = f"{title}, {result.column}, seed {result.seed}"
        if result.last_top1 is not None and abs(result.top1 - result.last_top1) > 1:
            print(
                f"{name}: top-1 is {result.top1:.1f} with averaged weights; the last ones have {result.last_top1:.1f}"
            )
        if result.column == "baseline" and result.teacher in transferred:
            continue  # It is in the rows of those runs, whose teacher may have another title.
        row = rows.setdefault((result.family, title), {})
        baselines = {r.seed: r.top1 for r in results if r.column == "baseline" and r.teacher == result.teacher}
        row["baseline"] = list(baselines.values())
        if result.teacher_top1 is not None:
            row["its top-1"] = [result.teacher_top1]
        if result.seed not in baselines:
            advice = "there is no baseline of that seed: --mode baseline trains one, `eval.py table` compares all runs"
            print(f"{name}: top-1 {result.top1:.1f}, but {advice}")
        elif result.column != "baseline":
            row.setdefault(result.column, []).append(result.top1 - baselines[result.seed])
    return rows


def columns_of(rows: Rows) -> list:
    """Lists the columns that some row has, the usual ones first."""
    having = {name for row in rows.values() for name in row if row[name]}
    return [name for name in COLUMNS if name in having] + sorted(having - set(COLUMNS))


def cell(column: str, values: list) -> str:
    """Returns mean and standard deviation over seeds as Markdown."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    text = f"{mean:.1f}" if column in ACCURACIES else f"{mean:+.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return f"**{text}**" if mean < 0 else text


def print_aligned(lines: list) -> None:
    """Prints rows of cells as Markdown with aligned columns. The first row is the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    for line in [lines[0], rule, *lines[1:]]:
        print(f"| {' | '.join(map(str.ljust, line, widths))} |")


def title_of(shared: tuple) -> str:
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
    """Makes a run's line of the CSV file: settings except the machine's, the commit of its code, accuracy."""
    config = runs.read_config(folder)
    line = config["made_of"]
    del line["teacher_weights"]  # The table has a row for each of them.
    return line | {
        "weights": config["settings"]["weights"],
        "commit": config["versions"]["commit"],
        "top1": result.top1,
        "last_top1": result.last_top1,
        "teacher_top1": result.teacher_top1,
    }


def write_csv(lines: list, path: str) -> None:
    """Writes a line for each run: what it is, what else differs between runs, and what was measured."""
    always = ("teacher", "mode", "method", "student", "seed", "top1", "commit")
    columns = []
    for name in lines[0]:
        values = {line[name] for line in lines}
        if name in always or len(values) > 1:
            columns.append(name)
    with replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"written: {path}")
