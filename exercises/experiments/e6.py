"""Trains copying students with a gate for every head, and prints the gates."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from kit import Finding, Trial
from torch import Tensor, nn

import eval as evaluation
import model
import train
from model import NOTHING, Attended, Handed, RoPE, ViT, ViTConfig


def built_with(attention: type) -> Callable:
    """Returns a function that builds students with this class of attention."""

    def build_student(*given: Any) -> ViT:
        with patch.object(model, "Attention", attention):
            return train.build_student(*given)

    return build_student


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    class GatedAttention(model.Attention):
        """Attention with a gate for each head, between the map that it is handed and its own."""

        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.raw_gate = nn.Parameter(torch.zeros(config.heads))

        def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
            if handed.routing is None:
                return super().forward(x, rope, bias, handed)
            own, v = self.route(x, rope, bias), self.values(x)
            # At the learning rate of the weights a gate would hardly move, hence the 20.
            read = answer.gated_read(handed.routing, own, v, answer.open_gates(20 * self.raw_gate))
            return Attended(own, v, self.proj(self.norm(read.transpose(1, 2).reshape(x.shape))))

    words = ["--mode", "transfer", "--method", "copy", *args.train]
    yield Trial("gates", words, build_student=built_with(GatedAttention))
    tensors = [evaluation.load_file(folder / "student.safetensors") for folder in args.folders]
    for number, name in enumerate(sorted(name for name in tensors[0] if name.endswith("raw_gate"))):
        gates = torch.stack([answer.open_gates(20 * held[name]) for held in tensors])  # (seeds, H)
        heads = " ".join(f"{gate:.2f}" for gate in gates.mean(0))
        spread = gates.mean(1).std(correction=min(1, len(gates) - 1))  # The spread is over seeds.
        print(f"block {number}: gates by head {heads}; mean {gates.mean():.2f} ± {spread:.2f}")
