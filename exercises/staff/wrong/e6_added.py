# says: nothing of the head's own map is left
# It adds the teacher on top, as a residual connection would.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
