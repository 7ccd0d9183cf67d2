"""Looks where the rollout of finished runs points."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from kit import Finding, Trial

import eval as evaluation
import teachers
import train
from support import data, runs
from support.arguments import number_from
from support.matching import layout, matching


def add_arguments(add: Callable) -> None:
    add("runs", nargs="+", metavar="RUN", help="The folders of finished runs.")
    keep = "The share of itself that a token keeps."
    add("--keep", nargs="+", type=number_from(float, 0, 1), default=[0, 0.5], metavar="X", help=keep)


@torch.inference_mode()
def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    count = 1000
    plan = layout(count, data.VAL_SEED)
    right = plan.cells.gather(1, plan.cue[:, None]).squeeze(1)  # This is the cell of the cued glyph.
    print(f"how often the cued glyph is first of four, in % of {count:,} images; guessing gives 25")
    for folder in args.runs:
        settings, student = runs.read_settings(folder, train.Settings), evaluation.load_student(folder)
        normalisation = teachers.find_teacher(settings.teacher).normalisation
        images = data.normalise(matching(count, data.VAL_SEED)[0], *normalisation)
        both = evaluation.both_maps(settings, student, train.build_teacher(settings), images)
        result = {}
        for side, maps in zip(("teacher", "student"), both, strict=True):
            for keep in args.keep:
                patches = answer.rollout(maps, torch.full((len(maps),), keep))[:, 0, student.config.prefix :]
                first = plan.cells.gather(1, patches.gather(1, plan.cells).argmax(1, keepdim=True)).squeeze(1)
                share = result[f"{side}, keep {keep:g}"] = 100 * float((first == right).float().mean())
                print(f"{Path(folder).name:44} {side}, keep {keep:g}: {share:.1f}")
        yield Finding(Path(folder).name, asdict(settings), result)
