# says: Mix shares
# It mixes the routings part by part, so that attend is called only once.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    q, k = gate * theirs.q + (1 - gate) * own.q, gate * theirs.k + (1 - gate) * own.k
    if theirs.bias is None:
        return attend(Routing(q, k), v)
    return attend(Routing(q, k, gate * theirs.bias + (1 - gate) * own.bias), v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
