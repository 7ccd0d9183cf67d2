"""Trains with what blinkers leave of the maps."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from types import ModuleType

from kit import Finding, Trial, plugged

from support.arguments import number_from
from transfer import AttentionTransfer


def add_arguments(add: Callable) -> None:
    radius = "How many rows and columns away a patch sees."
    add("--radius", nargs="+", type=number_from(int, 0), default=[0, 1, 3], metavar="N", help=radius)


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    for radius in args.radius:

        def change(transfer: AttentionTransfer, radius: int = radius) -> None:
            plugged(transfer, lambda block, r: answer.windowed(r, transfer.student.config, radius))

        yield Trial(f"radius {radius}", args.train, change)
