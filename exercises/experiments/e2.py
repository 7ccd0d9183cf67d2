"""Trains with the reverse divergence in place of the cross-entropy."""

from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType

import torch
from kit import Finding, Trial
from torch import Tensor


def run(args: Namespace, answer: ModuleType) -> Iterator[Trial | Finding]:
    def row_loss(p: Tensor, log_s: Tensor) -> Tensor:
        """Returns the learner's value, with the learner's slope as its gradient."""
        value, slope = answer.reverse_kl(p.clamp_min(torch.finfo(p.dtype).tiny).log().detach(), log_s.detach())
        surrogate = (slope * log_s).sum(-1)
        return value + surrogate - surrogate.detach()

    yield Trial("reverse", args.train, lambda transfer: setattr(transfer, "row_loss", row_loss))
