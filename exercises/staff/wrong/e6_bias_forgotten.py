# says: A routing is q, k and bias
# It computes the maps by hand from q and k.
from torch import Tensor

from model import Routing


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    gate = gate[:, None, None]
    maps = [(r.q @ r.k.mT / r.q.shape[-1] ** 0.5).softmax(-1) for r in (theirs, own)]
    return (gate * maps[0].detach() + (1 - gate) * maps[1]) @ v


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
