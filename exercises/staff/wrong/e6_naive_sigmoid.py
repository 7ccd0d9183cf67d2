# says: One that is not finite spoils all weights
# The logistic function as it is written on paper.
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]  # (H, 1, 1). A gate is for all tokens and features of a head.
    # Reading is linear in the map, so mixing what is read mixes the maps, and attend holds no map.
    return gate * attend(theirs, v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return 1 / (1 + (-raw).exp())
