"""Exercise 6: a gate for every head. See exercises/e6.md."""

from torch import Tensor

from model import Routing


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    """Reads, in each head, partly with the teacher's map and partly with its own.

    theirs, own: routings of q and k (B, H, N, d). v: (B, H, N, d). gate: (H,), from 0 (the head's own map) to 1 (the
    teacher's). Returns what the heads read, (B, H, N, d). Gradients reach own, v and gate, but not theirs.
    """
    raise NotImplementedError


def open_gates(raw: Tensor) -> Tensor:
    """Returns the gates (H,), from 0 to 1, of a parameter raw (H,), which an optimiser may move anywhere.

    Each gate depends only on its own number, and rises with it. At raw = 0 a gate is half open.
    """
    raise NotImplementedError
