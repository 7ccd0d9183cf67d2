# says: but gets no gradient
# It protects the teacher, and with it everything that it is mixed with.
import torch
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    gate = gate[:, None, None]
    with torch.no_grad():
        return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
