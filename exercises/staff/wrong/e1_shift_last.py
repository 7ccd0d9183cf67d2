# says: the shift comes first
# The keys are k A + c instead of (k + c) A.
import torch
from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    return Routing(r.q @ torch.linalg.inv(A).mT, r.k @ A + c[:, None], r.bias)
