"""Prints the tables and verdicts in study.md from the files beside it: python docs/study.py"""

import csv
import random
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from model import native_components  # noqa: E402
from support.tables import print_aligned  # noqa: E402
from teachers import find_teacher  # noqa: E402

METHODS = ("distill", "copy")
STUDENTS = ("standard copy", "standard distill", "native copy", "native distill")
COLUMNS = (*STUDENTS, "native baseline")

# The keys say whether a family has LayerScale, and whether it has registers.
GROUPS = {
    (False, False): "without LayerScale",
    (True, False): "with LayerScale, without registers",
    (True, True): "with LayerScale and registers",
}

Row = dict[Any, float]  # It holds means over seeds, by teacher (name, pretraining seed) or by number of images.


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(name: str) -> list[dict[str, str]]:
    with open(HERE / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column_of(line: dict[str, str]) -> str:
    """Returns the column to which a run belongs, such as "native copy"."""
    student = "untrained" if line.get("weights") == "random" else line["student"]
    column = f"{student} {line['method'] or line['mode']}"
    return f"{column}, blocks 0-2" if line.get("blocks") == "0-2" else column


def teacher_of(line: dict[str, str]) -> tuple[str, str]:
    return line["teacher"], line["teacher_seed"]


def images_of(line: dict[str, str]) -> int:
    return int(line["train_images"])


def gains_of(lines: list[dict[str, str]], key: Callable) -> dict[str, dict[Any, list[float]]]:
    """Returns, by column and key, the gains over the standard baseline of the same seed, one for each student seed."""
    baselines, gains = {}, {}
    for line in lines:
        if column_of(line) == "standard baseline":
            baselines[line["teacher"], line.get("train_images"), line["seed"]] = float(line["top1"])
    for line in lines:
        gain = float(line["top1"]) - baselines[line["teacher"], line.get("train_images"), line["seed"]]
        gains.setdefault(column_of(line), {}).setdefault(key(line), []).append(gain)
    return gains


def means_of(gains: dict[str, dict[Any, list[float]]]) -> dict[str, Row]:
    """Returns the means over the students' seeds."""
    means = {}
    for column, row in gains.items():
        means[column] = {key: statistics.mean(each) for key, each in row.items()}
    return means


def of_families(row: Row) -> dict[str, float]:
    """Returns the means over the teachers of each family, by the teachers' name."""
    together = {}
    for (name, _), value in row.items():
        together.setdefault(name, []).append(value)
    return {name: statistics.mean(each) for name, each in together.items()}


def has(name: str, component: str) -> bool:
    return component in native_components(find_teacher(name).config)


# ---- Tests -----------------------------------------------------------------------------------------------------------


def sign_test(differences: list[float]) -> tuple[int, int, float]:
    """Returns how many are above 0, how many there are without ties, and the two-sided p-value."""
    signs = [difference > 0 for difference in differences if difference]
    above, count = sum(signs), len(signs)
    tail = sum(comb(count, i) for i in range(min(above, count - above) + 1)) / 2**count
    return above, count, min(1.0, 2 * tail)


def permutation_test(some: list[float], others: list[float]) -> float:
    """Returns the exact two-sided probability that a random regrouping gives as large a difference of means."""
    together, count = some + others, len(some)
    middle = sum(together) * count / len(together)  # This is the average sum of `count` of them.
    found = abs(sum(some) - middle) - 1e-9
    sums = [abs(sum(chosen) - middle) for chosen in combinations(together, count)]
    return sum(each >= found for each in sums) / len(sums)


def ranks(values: Iterable[float]) -> list[float]:
    """Returns the rank of each number, from 0; equal numbers share the mean of their ranks."""
    values = list(values)
    in_order = sorted(values)
    return [in_order.index(value) + (in_order.count(value) - 1) / 2 for value in values]


def rank_correlation(xs: list[float], ys: list[float], shuffles: int = 10_000) -> tuple[float, float]:
    """Returns Spearman's correlation (from ranks) and the two-sided probability of one as strong after shuffling."""
    found, generator, as_strong = statistics.correlation(xs, ys), random.Random(0), 1  # The sample counts too.
    for _ in range(shuffles):
        shuffled = generator.sample(ys, len(ys))
        as_strong += abs(statistics.correlation(xs, shuffled)) >= abs(found)
    return found, as_strong / (shuffles + 1)


def verdict(is_held: bool, is_refuted: bool) -> str:
    return "*held*" if is_held else "*did not hold*" if is_refuted else "*undecided*"


# ---- Part 1 ----------------------------------------------------------------------------------------------------------


def print_hypotheses(gains: dict[str, Row]) -> None:
    lines = [["", "what was counted", "found", "p", ""]]

    def tell(name: str, what: str, differences: list[float], sample: int, held: Callable, refuted: Callable) -> None:
        assert len(differences) == sample
        above, count, p = sign_test(differences)
        told = verdict(held(above, count), refuted(above, count))
        lines.append([name, what, f"{above} of {count}", f"{p:.2g}", told])

    by_family = of_families(gains["standard distill"])
    less = [by_family["deit_nano"] - gain for name, gain in by_family.items() if name != "deit_nano"]
    what = "families that gain less than DeiT, distilling"
    tell("H1", what, less, 12, lambda above, _: above >= 10, lambda above, _: above <= 6)
    for method in METHODS:
        what = f"teachers from which a native student gains more, {method}"
        more = native_less_standard(gains, method, lambda name: has(name, "layerscale"))
        tell("H2", what, more, 18, lambda above, _: above >= 14, lambda above, _: above <= 9)
    for method in METHODS:
        what = f"teachers from which a native student gains more, {method}"
        more = native_less_standard(gains, method, lambda name: not has(name, "layerscale"))
        tell("H3", what, more, 15, lambda *_: False, lambda above, count: max(above, count - above) >= 12)
    alone = [
        gain for (name, _), gain in gains["native baseline"].items() if native_components(find_teacher(name).config)
    ]
    what = "families whose components help without a teacher"
    tell("H4", what, alone, 11, lambda above, _: above <= 5, lambda above, _: above >= 10)
    every = [gain for column in STUDENTS for gain in gains[column].values()]
    below = sum(gain < 0 for gain in every)
    lines.append(["H5", "mean gains below 0", f"{below} of {len(every)}", "", verdict(not below, below > 0)])
    print_aligned(lines)


def native_less_standard(gains: dict[str, Row], method: str, chosen: Callable) -> list[float]:
    """Returns native minus standard gain for each teacher in the chosen families that has components."""
    native, standard = gains[f"native {method}"], gains[f"standard {method}"]
    differences = []
    for teacher in native:
        if native_components(find_teacher(teacher[0]).config) and chosen(teacher[0]):
            differences.append(native[teacher] - standard[teacher])
    return differences


def print_families(gains: dict[str, Row]) -> None:
    """Prints the mean gains of each family, sorted by standard distill, then those of groups of families."""
    means = {column: of_families(gains[column]) for column in COLUMNS}
    names = sorted(means["standard distill"], key=means["standard distill"].get, reverse=True)
    lines, groups = [["family", *COLUMNS]], {}
    for name in names:
        lines.append([name, *(f"{means[column][name]:+.1f}" for column in COLUMNS)])
        groups.setdefault((has(name, "layerscale"), has(name, "registers")), []).append(name)
    print()
    print_aligned(lines)

    lines = [["nano families", *COLUMNS]]
    for components, title in GROUPS.items():
        members, cells = groups[components], []
        for column in COLUMNS:
            cells.append(f"{statistics.mean(means[column][name] for name in members):+.1f}")
        lines.append([f"{len(members)} {title}", *cells])
    print()
    print_aligned(lines)


def print_spread(gains: dict[str, dict[Any, list[float]]], top1: Row) -> None:
    """Prints how much gains differ between students of one teacher, and teachers of one family (exploratory)."""
    lines = [["standard deviation between", *STUDENTS], ["seeds of a student"], ["teachers of a family"]]
    lines.append(["the same, teachers of 95 % and more"])
    for column in STUDENTS:
        every, good = {}, {}
        for (name, seed), each in gains[column].items():
            every.setdefault(name, []).append(statistics.mean(each))
            if top1[name, seed] >= 95:
                good.setdefault(name, []).append(statistics.mean(each))
        for line, groups in zip(lines[1:], (gains[column], every, good), strict=True):
            variances = [statistics.variance(group) for group in groups.values() if len(group) > 1]
            line.append(f"{statistics.mean(variances) ** 0.5:.1f}")
    print()
    print_aligned(lines)


def read_agreement() -> dict[str, Row]:
    """Reads what `eval.py agreement` printed for the last block: means over student seeds, by measure and teacher."""
    found = {}
    for line in (HERE / "agreement.txt").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if title := re.match(r"(\w+)(?:\(seed(\d)\))?-matching", line):
            teacher = title[1], title[2] or "0"
        elif cells[:1] == ["block"]:
            names = cells[1:]
        elif cells[:1] == ["3"]:  # Block 3 is the last one.
            for name, cell in zip(names, cells[1:], strict=True):
                sides = cell.split(" > ")  # Teacher and student have a value each, or share one.
                for side, value in zip(("teacher's ", "student's ") if len(sides) > 1 else ("",), sides, strict=True):
                    found.setdefault(side + name, {}).setdefault(teacher, []).append(float(value))
    return means_of(found)


def print_explanation(distill: Row, without: Row, measures: dict[str, Row]) -> None:
    """Prints how the last block's maps and the teacher's top-1 correlate with a standard student's distilling gain."""
    with_it = [teacher for teacher in distill if has(teacher[0], "layerscale")]
    without_it = [teacher for teacher in distill if not has(teacher[0], "layerscale")]
    lines = [["measure", "39 teachers", "18 with LayerScale", "21 without"]]
    for name, values in measures.items():
        if len(set(values.values())) > 30:  # This skips parts that many of the 39 teachers lack.
            line = [name]
            for group in list(distill), with_it, without_it:
                found, p = rank_correlation(ranks(values[who] for who in group), ranks(distill[who] for who in group))
                line.append(f"{found:+.2f} ({p:.2g})")
            lines.append(line)
    print()
    print_aligned(lines)

    shown = ("kl", "teacher's entropy", "student's entropy", "teacher's sink", "student's sink")
    lines = [["family", "gain", "blocks 0-2", *shown]]
    all_blocks, some_blocks = of_families(distill), of_families(without)
    for family in sorted(some_blocks, key=some_blocks.get):
        cells = [f"{of_families(measures[name])[family]:.2f}" for name in shown]
        lines.append([family, f"{all_blocks[family]:+.1f}", f"{some_blocks[family]:+.1f}", *cells])
    print()
    print_aligned(lines)


def print_layerscale(gains: dict[str, Row], top1: Row) -> None:
    """Prints a standard student's gains in families with and without LayerScale (exploratory)."""
    lines = [["teachers", "", "6 families with LayerScale", "7 without", "p"]]
    for label, lowest in ("all", 0), ("95 % and more", 95):
        for method in METHODS:
            good = {who: gain for who, gain in gains[f"standard {method}"].items() if top1[who] >= lowest}
            sides = {True: [], False: []}
            for family, gain in of_families(good).items():
                sides[has(family, "layerscale")].append(gain)
            spans = [f"{min(side):+.1f} to {max(side):+.1f}" for side in sides.values()]
            lines.append([label, method, *spans, f"{permutation_test(sides[True], sides[False]):.2g}"])
    print()
    print_aligned(lines)


def print_more_teachers(gains: dict[str, Row]) -> None:
    """Prints H6: eight more teachers of each of two networks that differ only in LayerScale."""
    lines, differences, ps = [["H6", "8 teachers with LayerScale (DINOv2)", "8 without (DeiT)", "p"]], [], []
    for method in METHODS:
        sides, cells = [], []
        for family in "dinov2_nano", "deit_nano":
            side = [gain for (name, _), gain in gains[f"standard {method}"].items() if name == family]
            assert len(side) == 8
            sides.append(side)
            cells.append(f"{statistics.mean(side):+.1f} ({min(side):+.1f} to {max(side):+.1f})")
        differences.append(statistics.mean(sides[0]) - statistics.mean(sides[1]))
        ps.append(permutation_test(*sides))
        lines.append([method, *cells, f"{ps[-1]:.2g}"])
    print()
    print_aligned(lines)
    print(f"\nH6: {verdict(max(differences) < 0 and max(ps) < 0.05, min(differences) >= 0)}")


def part_1() -> None:
    every = read("study.csv")
    first = [line for line in every if line["teacher_seed"] in ("0", "1", "2")]
    by_seed = gains_of(first, teacher_of)
    gains = means_of(by_seed)
    top1 = {teacher_of(line): float(line["teacher_top1"]) for line in first if line["mode"] == "transfer"}
    print_hypotheses(gains)
    print_families(gains)
    print_spread(by_seed, top1)
    measures = read_agreement() | {"teacher's top-1": top1}
    print_explanation(gains["standard distill"], gains["standard distill, blocks 0-2"], measures)
    print_layerscale(gains, top1)
    more = [line for line in every if line["mode"] == "baseline" or line not in first]
    print_more_teachers(means_of(gains_of(more, teacher_of)))


# ---- Part 2 ----------------------------------------------------------------------------------------------------------

FEW, MANY = 1000, 60_000
SIZES = (FEW, 5000, 20_000, MANY)


def part_2() -> None:
    """Prints gains by number of training images, and what follows from them."""
    runs = read("real.csv")
    gains = gains_of(runs, images_of)
    noise = max(max(each) - min(each) for row in gains.values() for each in row.values())
    means = means_of(gains)
    columns = [*COLUMNS, "untrained copy", "untrained distill"]
    lines = [["images", *columns]]
    for images in SIZES:
        lines.append([f"{images:,}", *(f"{means[column][images]:+.1f}" for column in columns)])
    print()
    print_aligned(lines)
    print(f"\nnoise: {noise:.1f} points")
    print_real_hypotheses(means, noise)
    print_over_native(means)
    print_looks(runs)


def print_real_hypotheses(gains: dict[str, Row], noise: float) -> None:
    changes, lowest, crossed, rises, learnt = [], [], [], [], []  # All are indexed by method.
    for method in METHODS:
        standard, native, untrained = (gains[f"{student} {method}"] for student in ("standard", "native", "untrained"))
        changes.append([gain[MANY] - gain[FEW] for gain in (standard, native)])
        lowest.append([min(standard.values())])
        crossed.append(any(standard[images] <= 0 < native[images] for images in SIZES))
        rises.append([native[images] - standard[images] for images in (FEW, MANY)])
        learnt.append([standard[images] - untrained[images] for images in SIZES])
    every_change, every_more = sum(changes, []), sum(learnt, [])
    shrinks = verdict(max(every_change) < -noise, sum(change >= 0 for change in every_change) >= 2)
    fails = verdict(any(crossed), min(lowest)[0] > 0)
    turns = verdict(all(few < 0 < many for few, many in rises), all(many <= few for few, many in rises))
    is_learnt = verdict(min(every_more) > noise, sum(more <= 0 for more in every_more) >= 2)
    print()
    print_aligned(
        [
            ["", "gains in points, distilling; copying", "found", ""],
            ["R1", "at 60,000 minus at 1,000: standard, native", points(changes), shrinks],
            ["R2", "the lowest of a standard student", points(lowest), fails],
            ["R3", "native minus standard, at 1,000 and 60,000", points(rises), turns],
            ["R4", "trained minus untrained, at the four sizes", points(learnt), is_learnt],
        ]
    )


def print_over_native(gains: dict[str, Row]) -> None:
    """Prints what a native student gains over a native student without a teacher (exploratory)."""
    lines = [["images", "native copy", "native distill"]]
    for images in SIZES:
        baseline = gains["native baseline"][images]
        more = [gains[column][images] - baseline for column in lines[0][1:]]
        lines.append([f"{images:,}", *(f"{gain:+.1f}" for gain in more)])
    print()
    print_aligned(lines)


def print_looks(runs: list[dict[str, str]]) -> None:
    """Prints top-1 for seed 0, by number of steps, and with a LayerScale that starts at 1 (exploratory)."""
    few, more, many = {}, {}, {}  # Each holds top-1 by column.
    for line in runs:
        if line["seed"] == "0" and images_of(line) in (FEW, MANY):
            row = few if images_of(line) == FEW else many
            row[column_of(line)] = line["top1"]
    for line in read("steps.csv"):
        more[column_of(line)] = line["top1"]
    for line in read("layerscale.csv"):  # These students are all native.
        row = few if images_of(line) == FEW else many
        row[f"from 1: {line['method'] or line['mode']}"] = line["top1"]
    rows = {"1,000 images, 336 steps": few, "1,000 images, 1,008 steps": more, "60,000 images, 938 steps": many}
    columns = []
    for student in "standard ", "native ", "from 1: ":
        columns += [student + name for name in ("baseline", "copy", "distill")]
    lines = [["top-1, seed 0", *columns]]
    for label, row in rows.items():
        lines.append([label, *(f"{float(row[name]):.1f}" if name in row else "-" for name in columns)])
    print()
    print_aligned(lines)


def points(by_method: list[list[float]]) -> str:
    return "; ".join(", ".join(f"{value:+.1f}" for value in values) for values in by_method)


if __name__ == "__main__":
    part_1()
    part_2()
