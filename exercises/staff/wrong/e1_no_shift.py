# says: , but k + c is
# c is left out, since it changes no map.
import torch
from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    return Routing(r.q @ torch.linalg.inv(A).mT, r.k @ A, r.bias)
