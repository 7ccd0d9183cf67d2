# says: Both maps read v, and v gets a gradient through both
# v is detached where the head's own map reads it.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v.detach())


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
