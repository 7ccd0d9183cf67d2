# says: which of the two maps
# It takes the gate for the share of the head's own map.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return (1 - gate) * attend(theirs, v) + gate * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
