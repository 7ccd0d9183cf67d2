# says: Yours never closes or opens fully
# The gate never quite opens or closes.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return 0.1 + 0.8 * raw.sigmoid()
