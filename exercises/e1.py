"""Exercise 1: two routings, one map. See exercises/e1.md."""

from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    """Returns a routing with the keys (k + c) A, the bias of r and the attention map of r.

    r: q and k (B, H, N, d), bias (H, N, N) or None. A: (H, d, d), an invertible matrix for each head. c: (H, d).
    """
    raise NotImplementedError
