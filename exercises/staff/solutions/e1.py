"""Exercise 1: two routings, one map."""

import torch
from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    k = (r.k + c[:, None]) @ A
    q = r.q @ torch.linalg.inv(A).mT  # This holds as q A^-T A^T k^T = q k^T.
    return Routing(q, k, r.bias)
