# says: never comes back
# It cuts off, but from the middle.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return (raw + 0.5).clamp(0, 1)
