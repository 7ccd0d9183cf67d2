# says: own.bias affects what is read, but gets no gradient
# The head's own bias is detached, as the teacher's is.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    own = own if own.bias is None else own._replace(bias=own.bias.detach())
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
