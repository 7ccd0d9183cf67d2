"""The figures of study.md, from the files beside it: python docs/study.py"""

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

# By whether there are LayerScale and registers.
GROUPS = {
    (False, False): "without LayerScale",
    (True, False): "with LayerScale, without registers",
    (True, True): "with LayerScale and registers",
}

Row = dict[Any, float]  # by teacher, (its name, the seed of its pretraining), or by number of images: a mean over seeds


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(name: str) -> list[dict[str, str]]:
    with open(HERE / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column_of(line: dict[str, str]) -> str:
    """What a run is, as "native copy"."""
    student = "untrained" if line.get("weights") == "random" else line["student"]
    column = f"{student} {line['method'] or line['mode']}"
    return f"{column}, blocks 0-2" if line.get("blocks") == "0-2" else column


def teacher_of(line: dict[str, str]) -> tuple[str, str]:
    return line["teacher"], line["teacher_seed"]


def images_of(line: dict[str, str]) -> int:
    return int(line["train_images"])


def gains_of(lines: list[dict[str, str]], key: Callable) -> dict[str, dict[Any, list[float]]]:
    """By column and key: the gains over the standard baseline of the same seed, one for each seed of the student."""
    baselines, gains = {}, {}
    for line in lines:
        if column_of(line) == "standard baseline":
            baselines[line["teacher"], line.get("train_images"), line["seed"]] = float(line["top1"])
    for line in lines:
        gain = float(line["top1"]) - baselines[line["teacher"], line.get("train_images"), line["seed"]]
        gains.setdefault(column_of(line), {}).setdefault(key(line), []).append(gain)
    return gains


def means_of(gains: dict[str, dict[Any, list[float]]]) -> dict[str, Row]:
    """The means over the students' seeds."""
    means = {}
    for column, row in gains.items():
        means[column] = {key: statistics.mean(each) for key, each in row.items()}
    return means


def of_families(row: Row) -> dict[str, float]:
    """Means over the teachers of each family, by the teachers' name."""
    together = {}
    for (name, _), value in row.items():
        together.setdefault(name, []).append(value)
    return {name: statistics.mean(each) for name, each in together.items()}


def has(name: str, component: str) -> bool:
    return component in native_components(find_teacher(name).config)


# ---- Tests -----------------------------------------------------------------------------------------------------------


def sign_test(differences: list[float]) -> tuple[int, int, float]:
    """How many of how many are above 0, and the two-sided probability of that or more by chance. Ties are left out."""
    signs = [difference > 0 for difference in differences if difference]
    above, count = sum(signs), len(signs)
    tail = sum(comb(count, i) for i in range(min(above, count - above) + 1)) / 2**count
    return above, count, min(1.0, 2 * tail)


def permutation_test(some: list[float], others: list[float]) -> float:
    """The exact two-sided probability of a difference of means as large as that, if all are exchanged at will."""
    together, count = some + others, len(some)
    middle = sum(together) * count / len(together)  # what `count` of them sum to on average
    found = abs(sum(some) - middle) - 1e-9
    sums = [abs(sum(chosen) - middle) for chosen in combinations(together, count)]
    return sum(each >= found for each in sums) / len(sums)


def ranks(values: Iterable[float]) -> list[float]:
    """The place of each number in their order; equal ones share the mean of their places."""
    values = list(values)
    in_order = sorted(values)
    return [in_order.index(value) + (in_order.count(value) - 1) / 2 for value in values]


def rank_correlation(xs: list[float], ys: list[float], shuffles: int = 10_000) -> tuple[float, float]:
    """Spearman's, of ranks, and the probability that a shuffled sample correlates as strongly, either way."""
    found, generator, as_strong = statistics.correlation(xs, ys), random.Random(0), 1  # the sample is one of them
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
        what = f"teachers of which a native student gains more, {method}"
        more = native_less_standard(gains, method, lambda name: has(name, "layerscale"))
        tell("H2", what, more, 18, lambda above, _: above >= 14, lambda above, _: above <= 9)
    for method in METHODS:
        what = f"teachers of which a native student gains more, {method}"
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
    """Of each teacher of the chosen families that has components."""
    native, standard = gains[f"native {method}"], gains[f"standard {method}"]
    differences = []
    for teacher in native:
        if native_components(find_teacher(teacher[0]).config) and chosen(teacher[0]):
            differences.append(native[teacher] - standard[teacher])
    return differences


def print_families(gains: dict[str, Row]) -> None:
    """Mean gains of each family over its teachers, those that gain most by distilling first; then of groups of them."""
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
    """Exploratory: how much gains differ between students of one teacher, and between teachers of one family."""
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
    """What `eval.py agreement` printed of the last block, by measure and teacher: means over the students' seeds."""
    found = {}
    for line in (HERE / "agreement.txt").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if title := re.match(r"(\w+)(?:\(seed(\d)\))?-matching", line):
            teacher = title[1], title[2] or "0"
        elif cells[:1] == ["block"]:
            names = cells[1:]
        elif cells[:1] == ["3"]:  # the last one
            for name, cell in zip(names, cells[1:], strict=True):
                sides = cell.split(" > ")  # the teacher's and the student's, or one number of both
                for side, value in zip(("teacher's ", "student's ") if len(sides) > 1 else ("",), sides, strict=True):
                    found.setdefault(side + name, {}).setdefault(teacher, []).append(float(value))
    return means_of(found)


def print_explanation(distill: Row, without: Row, measures: dict[str, Row]) -> None:
    """How the maps of the last block, and the teacher's own top-1, go with what a distilled standard student gains."""
    with_it = [teacher for teacher in distill if has(teacher[0], "layerscale")]
    without_it = [teacher for teacher in distill if not has(teacher[0], "layerscale")]
    lines = [["measure", "39 teachers", "18 with LayerScale", "21 without"]]
    for name, values in measures.items():
        if len(set(values.values())) > 30:  # of 39: not of parts that many teachers lack
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
    """Exploratory: families with LayerScale and without, by the gains of a standard student."""
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
    """H6: eight more teachers of two networks that differ in LayerScale alone."""
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
    """Gains by number of training images, and what follows."""
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
    changes, lowest, crossed, rises, learnt = [], [], [], [], []  # by method
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
            ["R1", "at 60,000 less at 1,000: standard, native", points(changes), shrinks],
            ["R2", "the lowest of a standard student", points(lowest), fails],
            ["R3", "native less standard, at 1,000 and 60,000", points(rises), turns],
            ["R4", "trained less untrained, at the four sizes", points(learnt), is_learnt],
        ]
    )


def print_over_native(gains: dict[str, Row]) -> None:
    """Exploratory: what a native student gains over a native one without a teacher."""
    lines = [["images", "native copy", "native distill"]]
    for images in SIZES:
        baseline = gains["native baseline"][images]
        more = [gains[column][images] - baseline for column in lines[0][1:]]
        lines.append([f"{images:,}", *(f"{gain:+.1f}" for gain in more)])
    print()
    print_aligned(lines)


def print_looks(runs: list[dict[str, str]]) -> None:
    """Exploratory: top-1 of seed 0, by number of steps, and with a LayerScale that begins at 1."""
    few, more, many = {}, {}, {}  # top-1 by column
    for line in runs:
        if line["seed"] == "0" and images_of(line) in (FEW, MANY):
            row = few if images_of(line) == FEW else many
            row[column_of(line)] = line["top1"]
    for line in read("steps.csv"):
        more[column_of(line)] = line["top1"]
    for line in read("layerscale.csv"):  # native students
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
