# says: bias: None) where Routing(
# Routing(q, k) is shorter to write.
import torch
from torch import Tensor

from model import Routing


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    return Routing(r.q @ torch.linalg.inv(A).mT, (r.k + c[:, None]) @ A)
