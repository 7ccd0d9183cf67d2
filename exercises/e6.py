"""Exercise 6, a gate for every head. The statement is e6.md."""

from torch import Tensor

from model import Routing


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    """Each head reads partly with the teacher's map and partly with its own.

    theirs, own: routings of q and k (B, H, N, d). v: (B, H, N, d). gate: (H,), from 0 (the head's own map) to 1 (the
    teacher's). Returns what the heads read, (B, H, N, d). Gradients reach own, v and gate, and never theirs.
    """
    raise NotImplementedError


def open_gates(raw: Tensor) -> Tensor:
    """The gates (H,), from 0 to 1, that belong to a parameter raw (H,), which an optimiser may move anywhere.

    Each gate depends on its own number alone, and rises with it. raw = 0 is a gate half open.
    """
    raise NotImplementedError
