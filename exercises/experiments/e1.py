"""Trains with a teacher whose q and k are stretched, and whose maps are the same."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from kit import Finding, Trial, plugged

from model import Routing
from support.arguments import number_from


def add_arguments(add: Callable) -> None:
    stretch = "The largest stretch of A, divided by its smallest."
    add("--condition", nargs="+", type=number_from(float, 1), default=[1, 10, 100], metavar="X", help=stretch)


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    for condition in args.condition:

        def stretched(block: int, r: Routing, condition: float = condition) -> Routing:
            """Changes q and k by an A of this condition, and keeps the maps."""
            H, d = r.q.shape[1], r.q.shape[-1]
            generator = torch.Generator().manual_seed(block)
            left, right = torch.linalg.qr(torch.randn(2, H, d, d, generator=generator))[0]
            stretches = condition ** torch.linspace(-0.5, 0.5, d)
            return answer.same_map(r, ((left * stretches) @ right).to(r.q), r.q.new_zeros(H, d))

        label = f"condition {condition:g} {'q' if 'q' in args.train else 'map'}"
        yield Trial(label, args.train, lambda transfer, f=stretched: plugged(transfer, f))
