"""Compares a score with the top-1 of students that copy degraded teachers."""

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from degraded import all_degraded
from kit import Finding, Trial, Wrong
from tqdm import tqdm

import teachers
import train
from support import data


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    gains = json.loads(Path(__file__).parents[1].joinpath("gains.json").read_text("utf-8"))
    worse = all_degraded(teachers.load_teacher("deit_nano"))
    images = data.load_data("matching", "", 32, teachers.find_teacher("deit_nano").normalisation).val
    plan = {settings.seed: settings for settings in train.plan_runs(train.parse_arguments(args.train))}
    for seed, settings in plan.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        pictures, labels = zip(*(images[number] for number in order[:512].tolist()), strict=True)
        pictures, labels = torch.stack(pictures), torch.tensor(labels)
        scores = {name: float(answer.score(worse[name], pictures, labels)) for name in tqdm(gains, "scores")}
        if not all(map(math.isfinite, scores.values())):
            raise Wrong("a score is not finite")
        for name in sorted(scores, key=scores.get):
            print(f"{name:12} score {scores[name]:.4g}, top-1 {gains[name]:.1f}")
        correlation = rank_correlation(list(scores.values()), list(gains.values()))
        print(f"seed {seed}: rank correlation {correlation:.2f}")
        yield Finding(f"seed{seed}", asdict(settings), {"rank correlation": correlation} | scores)


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Returns Spearman's correlation. Equal numbers get the mean of their ranks. If a side is constant, it is 0."""
    both = torch.tensor([x, y], dtype=torch.float64)
    below, equal = both[:, :, None] > both[:, None], both[:, :, None] == both[:, None]
    ranks = below.double().sum(-1) + equal.double().sum(-1) / 2
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num())
