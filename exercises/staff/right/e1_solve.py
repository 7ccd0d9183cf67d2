# It solves a linear system in place of an inverse.
import torch
from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    k = torch.einsum("bhnd,hde->bhne", r.k + c[:, None], A)
    return Routing(torch.linalg.solve(A, r.q.mT).mT, k, r.bias)
