"""Trains with controls: maps that know nothing about the image."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from kit import Finding, Trial, plugged

from model import Routing

CONTROLS = ("true", "other_image", "no_image", "random")


def add_arguments(add: Callable) -> None:
    add("--control", nargs="+", choices=CONTROLS, default=CONTROLS, help="The controls.")


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    def other_image(block: int, r: Routing) -> Routing:
        # All blocks get the same seed, so they look at the same other image. A single image has no other.
        return answer.other_image(r, torch.Generator().manual_seed(0)) if len(r.q) > 1 else r

    functions = {"other_image": other_image, "no_image": lambda block, r: answer.no_image(r)}
    for control in args.control:
        words = ["--mode", "transfer", *args.train, *(["--weights", "random"] if control == "random" else [])]
        function = functions.get(control, lambda block, r: r)
        yield Trial(control, words, lambda transfer, f=function: plugged(transfer, f))
