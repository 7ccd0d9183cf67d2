"""The tests of study.md, part 1, from the files beside it: python docs/study.py"""

import csv
import random
import re
import statistics
from collections.abc import Callable, Iterable
from itertools import combinations
from math import comb
from pathlib import Path

HERE = Path(__file__).parent
LAYERSCALE = ("deit3", "beit", "beitv2", "dinov2", "dinov2_reg", "dinov3")
OTHERS = ("mae", "clip", "beit3", "eva02", "qknorm")  # that have components; deit and siglip have none
METHODS = ("distill", "copy")
COLUMNS = ("standard copy", "standard distill", "native copy", "native distill")

# A teacher: its family and the seed of its pretraining. "native baseline" is of the family, and stands at seed 0.
Teacher = tuple[str, str]
Gains = dict[str, dict[Teacher, float]]
Rule = Callable[[int, int], bool]  # of how many above 0, and of how many


def read(name: str) -> list[dict[str, str]]:
    with open(HERE / name) as file:
        return list(csv.DictReader(file))


def teacher_of(line: dict[str, str]) -> Teacher:
    return line["teacher"].removesuffix("_nano"), line["teacher_seed"]


def gains_of(lines: list[dict[str, str]]) -> Gains:
    """By column and teacher: the gain over the standard baseline of the same seed, a mean over the students' seeds."""
    baselines, gains = {}, {}
    for line in lines:
        if line["mode"] == "baseline" and line["student"] == "standard":
            baselines[line["teacher"], line["seed"]] = float(line["top1"])
    for line in lines:
        column = f"{line['student']} {line['method'] or line['mode']}" + f" {line['blocks']}" * bool(line["blocks"])
        gain = float(line["top1"]) - baselines[line["teacher"], line["seed"]]
        gains.setdefault(column, {}).setdefault(teacher_of(line), []).append(gain)
    return {column: {who: statistics.mean(each) for who, each in row.items()} for column, row in gains.items()}


def of_families(gains: dict[Teacher, float]) -> dict[str, float]:
    """Means over the teachers of each family."""
    together = {}
    for (family, _), gain in gains.items():
        together.setdefault(family, []).append(gain)
    return {family: statistics.mean(each) for family, each in together.items()}


def sign_test(differences: Iterable[float]) -> tuple[int, int, float]:
    """How many of how many are above 0, and the two-sided probability of that or more by chance. Ties are left out."""
    signs = [difference > 0 for difference in differences if difference]
    above, count = sum(signs), len(signs)
    tail = sum(comb(count, i) for i in range(min(above, count - above) + 1)) / 2**count
    return above, count, min(1.0, 2 * tail)


def verdict(is_held: bool, is_refuted: bool) -> str:
    return "*held*" if is_held else "*did not hold*" if is_refuted else "*undecided*"


def print_hypotheses(gains: Gains) -> None:
    print("| | what was counted | found | p | |\n| --- | --- | --- | --- | --- |")

    def tell(name: str, what: str, differences: list[float], sample: int, held: Rule, refuted: Rule) -> None:
        assert len(differences) == sample
        above, count, p = sign_test(differences)
        told = verdict(held(above, count), refuted(above, count))
        print(f"| {name} | {what} | {above} of {count} | {p:.2g} | {told} |")

    by_family = of_families(gains["standard distill"])
    less = [by_family["deit"] - gain for family, gain in by_family.items() if family != "deit"]
    what = "families that gain less than DeiT, distilling"
    tell("H1", what, less, 12, lambda above, _: above >= 10, lambda above, _: above <= 6)
    for method in METHODS:
        more = native_less_standard(gains, method, LAYERSCALE)
        what = f"teachers of which a native student gains more, {method}"
        tell("H2", what, more, 18, lambda above, _: above >= 14, lambda above, _: above <= 9)
    for method in METHODS:
        more = native_less_standard(gains, method, OTHERS)
        what = f"teachers of which a native student gains more, {method}"
        tell("H3", what, more, 15, lambda *_: False, lambda above, count: max(above, count - above) >= 12)
    alone = [gain for (family, _), gain in gains["native baseline"].items() if family in LAYERSCALE + OTHERS]
    what = "families whose components help without a teacher"
    tell("H4", what, alone, 11, lambda above, _: above <= 5, lambda above, _: above >= 10)
    all_gains = [gain for column in COLUMNS for gain in gains[column].values()]
    below = sum(gain < 0 for gain in all_gains)
    print(f"| H5 | mean gains below 0 | {below} of {len(all_gains)} | | {verdict(not below, below > 0)} |")


def native_less_standard(gains: Gains, method: str, families: tuple[str, ...]) -> list[float]:
    native, standard = gains[f"native {method}"], gains[f"standard {method}"]
    return [native[teacher] - standard[teacher] for teacher in native if teacher[0] in families]


def print_families(gains: Gains) -> None:
    """Mean gains of each family over its teachers, those that gain most by distilling first."""
    columns = [*COLUMNS, "native baseline"]
    means = {column: of_families(gains[column]) for column in columns}
    print(f"\n| family | {' | '.join(columns)} |\n|{' --- |' * 6}")
    for family in sorted(means["standard distill"], key=means["standard distill"].get, reverse=True):
        print(f"| {family} | {' | '.join(f'{means[column][family]:+.1f}' for column in columns)} |")


def print_groups(gains: Gains) -> None:
    """README's table: the families in three groups. A group's figure is a mean over its families."""
    columns = [*COLUMNS, "native baseline"]
    means = {column: of_families(gains[column]) for column in columns}
    groups = {"7 without LayerScale": set(means["native copy"]) - set(LAYERSCALE)}
    groups["2 with LayerScale and registers"] = {"dinov2_reg", "dinov3"}
    groups["4 with LayerScale, without registers"] = set(LAYERSCALE) - {"dinov2_reg", "dinov3"}
    print(f"\n| nano families | {' | '.join(columns)} |\n|{' --- |' * 6}")
    for name, families in groups.items():
        cells = [f"{statistics.mean(means[column][family] for family in families):+.1f}" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


def read_agreement() -> dict[Teacher, dict[str, float]]:
    """What `eval.py agreement` printed of the last block, by teacher: means over the students' seeds."""
    found = {}
    for line in (HERE / "agreement.txt").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if title := re.match(r"(\w+)_nano(?:\(seed(\d)\))?-matching", line):
            teacher = title[1], title[2] or "0"
        elif cells and cells[0] == "block":
            names = cells[1:]
        elif cells and cells[0] == "3":  # the last one
            for name, cell in zip(names, cells[1:], strict=True):
                for side, value in zip(("teacher", "student"), cell.split(" > "), strict=False):
                    key = f"{side}'s {name}" if " > " in cell else name
                    found.setdefault(teacher, {}).setdefault(key, []).append(float(value))
    return {teacher: {name: statistics.mean(each) for name, each in of.items()} for teacher, of in found.items()}


def ranks(values: Iterable[float]) -> list[float]:
    """The place of each number in their order; equal ones share the mean of their places."""
    values = list(values)
    in_order = sorted(values)
    return [in_order.index(value) + (in_order.count(value) - 1) / 2 for value in values]


def rank_correlation(xs: list[float], ys: list[float], shuffles: int = 10_000) -> tuple[float, float]:
    """Spearman's, and the probability that a shuffled sample correlates as strongly, in either direction."""
    found, generator, as_strong = statistics.correlation(xs, ys), random.Random(0), 1  # the sample is one of them
    for _ in range(shuffles):
        shuffled = generator.sample(ys, len(ys))
        as_strong += abs(statistics.correlation(xs, shuffled)) >= abs(found)
    return found, as_strong / (shuffles + 1)


def print_explanation(gains: Gains, top1: dict[Teacher, float]) -> None:
    """How the maps of the last block, and the teacher's own top-1, go with what a distilled standard student gains."""
    agreement, distill = read_agreement(), gains["standard distill"]
    with_it = [teacher for teacher in distill if teacher[0] in LAYERSCALE]
    without_it = [teacher for teacher in distill if teacher[0] not in LAYERSCALE]
    measures = {name: {who: of[name] for who, of in agreement.items()} for name in agreement["deit", "0"]}
    measures["teacher's top-1"] = top1
    print("\n| measure | 39 teachers | 18 with LayerScale | 21 without |\n| --- | --- | --- | --- |")
    for name, values in measures.items():
        if len(set(values.values())) > 30:  # of 39: not of parts that many teachers lack
            cells = []
            for group in list(distill), with_it, without_it:
                found, p = rank_correlation(ranks(values[who] for who in group), ranks(distill[who] for who in group))
                cells.append(f"{found:+.2f} ({p:.2g})")
            print(f"| {name} | {' | '.join(cells)} |")

    without = of_families(gains["standard distill 0-2"])  # the intervention
    shown = ("kl", "teacher's entropy", "student's entropy", "teacher's sink", "student's sink")
    print(f"\n| family | gain | without the last block | {' | '.join(shown)} |\n|{' --- |' * 8}")
    for family in sorted(without, key=without.get):
        numbers = " | ".join(f"{of_families(measures[name])[family]:.2f}" for name in shown)
        print(f"| {family} | {of_families(distill)[family]:+.1f} | {without[family]:+.1f} | {numbers} |")


def print_exploratory(gains: Gains, top1: dict[Teacher, float]) -> None:
    """Families with LayerScale and without, by the gains of a standard student."""
    print("\n| teachers | | 6 families with LayerScale | 7 without | p |\n| --- | --- | --- | --- | --- |")
    for label, lowest in ("all", 0), ("95 % and more", 95):
        for method in METHODS:
            good = {who: gain for who, gain in gains[f"standard {method}"].items() if top1[who] >= lowest}
            sides = {True: [], False: []}
            for family, gain in of_families(good).items():
                sides[family in LAYERSCALE].append(gain)
            spans = [f"{min(side):+.1f} to {max(side):+.1f}" for side in sides.values()]
            p = permutation_test(sides[True], sides[False])
            print(f"| {label} | {method} | {spans[0]} | {spans[1]} | {p:.2g} |")


def permutation_test(some: list[float], others: list[float]) -> float:
    """The exact two-sided probability of a difference of means as large as that, if all are exchanged at will."""
    together, count = some + others, len(some)
    middle = sum(together) * count / len(together)  # what `count` of them sum to on average
    found = abs(sum(some) - middle) - 1e-9
    sums = [abs(sum(chosen) - middle) for chosen in combinations(together, count)]
    return sum(each >= found for each in sums) / len(sums)


def print_more_teachers(gains: Gains) -> None:
    """H6: eight more teachers of two networks that differ in LayerScale alone."""
    print("\n| H6 | 8 teachers with LayerScale (DINOv2) | 8 without (DeiT) | p |\n| --- | --- | --- | --- |")
    means, ps = [], []
    for method in METHODS:
        with_it, without_it = (
            [gain for (family, _), gain in gains[f"standard {method}"].items() if family == name]
            for name in ("dinov2", "deit")
        )
        assert len(with_it) == len(without_it) == 8
        means.append(statistics.mean(with_it) - statistics.mean(without_it))
        ps.append(permutation_test(with_it, without_it))
        cells = [
            f"{statistics.mean(each):+.1f} ({min(each):+.1f} to {max(each):+.1f})" for each in (with_it, without_it)
        ]
        print(f"| {method} | {cells[0]} | {cells[1]} | {ps[-1]:.2g} |")
    print(f"\nH6: {verdict(max(means) < 0 and max(ps) < 0.05, min(means) >= 0)}")


# ---- Part 2 ----------------------------------------------------------------------------------------------------------

SIZES = (1000, 5000, 20_000, 60_000)
REAL_COLUMNS = (*COLUMNS, "random copy", "random distill", "native baseline")


def real_gains(lines: list[dict[str, str]]) -> tuple[dict[tuple[str, int], float], float]:
    """Gains by column and number of training images, means over seeds; and the largest difference between two seeds."""
    top1 = {}
    for line in lines:
        kind = "random" if line["weights"] == "random" else line["student"]
        key = f"{kind} {line['method'] or line['mode']}", int(line["train_images"])
        top1.setdefault(key, {})[line["seed"]] = float(line["top1"])
    gains, noise = {}, 0.0
    for (column, images), by_seed in top1.items():
        baselines = top1["standard baseline", images]
        each = [value - baselines[seed] for seed, value in by_seed.items()]
        gains[column, images] = statistics.mean(each)
        noise = max(noise, max(each) - min(each))
    return gains, noise


def print_real(gains: dict[tuple[str, int], float], noise: float) -> None:
    """Gains by number of training images; a dash is a run that is not done yet."""
    print(f"\n| images | {' | '.join(REAL_COLUMNS)} |\n|{' --- |' * 8}")
    for images in SIZES:
        found = [gains.get((column, images)) for column in REAL_COLUMNS]
        print(f"| {images:,} | {' | '.join('-' if gain is None else f'{gain:+.1f}' for gain in found)} |")
    print(f"\nnoise: {noise:.1f} points")
    if len(gains) == (len(REAL_COLUMNS) + 1) * len(SIZES):  # with the standard baseline's, which are 0
        print_real_hypotheses(gains, noise)


def print_real_hypotheses(gains: dict[tuple[str, int], float], noise: float) -> None:
    print("\n| | found | |\n| --- | --- | --- |")
    falls = [gains[column, SIZES[0]] - gains[column, SIZES[-1]] for column in COLUMNS]  # from few images to many
    held, refuted = min(falls) > noise, sum(fall <= 0 for fall in falls) >= 2
    print(f"| R1 | the gain falls by {points(falls)} | {verdict(held, refuted)} |")

    pairs = [
        (gains[f"standard {method}", images], gains[f"native {method}", images])
        for method in METHODS
        for images in SIZES
    ]
    crossed = sum(standard <= 0 < native for standard, native in pairs)
    lowest = min(standard for standard, _ in pairs)
    print(f"| R2 | a standard student's lowest gain is {lowest:+.1f} | {verdict(crossed > 0, lowest > 0)} |")

    native = [
        [gains[f"native {method}", n] - gains[f"standard {method}", n] for n in (SIZES[0], SIZES[-1])]
        for method in METHODS
    ]
    held, refuted = all(few < 0 < many for few, many in native), all(many <= few for few, many in native)
    told = "; ".join(
        f"{method} {few:+.1f} and {many:+.1f}" for method, (few, many) in zip(METHODS, native, strict=True)
    )
    print(f"| R3 | native less standard at {SIZES[0]:,} and {SIZES[-1]:,}: {told} | {verdict(held, refuted)} |")

    learnt = [gains[f"standard {method}", n] - gains[f"random {method}", n] for method in METHODS for n in SIZES]
    held, refuted = min(learnt) > noise, sum(more <= 0 for more in learnt) >= 2
    print(f"| R4 | trained less untrained: {points(learnt)} | {verdict(held, refuted)} |")


def points(values: list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def main() -> None:
    every = read("study.csv")
    lines = [line for line in every if line["teacher_seed"] in ("0", "1", "2")]
    gains = gains_of(lines)
    top1 = {teacher_of(line): float(line["teacher_top1"]) for line in lines if line["mode"] == "transfer"}
    print_hypotheses(gains)
    print_families(gains)
    print_groups(gains)
    print_explanation(gains, top1)
    print_exploratory(gains, top1)
    baselines = [line for line in lines if line["mode"] == "baseline"]
    print_more_teachers(gains_of(baselines + [line for line in every if line not in lines]))
    print_real(*real_gains(read("real.csv")))


if __name__ == "__main__":
    main()
