"""Exercise 1: two routings, one map. The statement is exercises/e1.md."""

from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    """A routing whose keys are (k + c) A, and whose attention map is that of r.

    r: q and k (B, H, N, d), bias (H, N, N) or None. A: (H, d, d), an invertible matrix for each head. c: (H, d).
    """
    raise NotImplementedError
