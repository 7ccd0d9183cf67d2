# says: token 0 of every head
# It has one None too few: (H, 1) is aligned with (N, d).
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
