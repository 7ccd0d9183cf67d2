# says: the teacher must not learn
# q and k are detached, and the bias is forgotten.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = theirs._replace(q=theirs.q.detach(), k=theirs.k.detach())
    gate = gate[:, None, None]
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
