# says: Mix shares
# It mixes queries, and takes the keys of the stronger side.
import torch
from torch import Tensor

from model import Routing, attend


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    open_heads = gate[:, None, None] >= 0.5
    gate = gate[:, None, None]
    routing = Routing(gate * theirs.q + (1 - gate) * own.q, torch.where(open_heads, theirs.k, own.k))
    if theirs.bias is not None:
        routing = routing._replace(bias=torch.where(open_heads, theirs.bias, own.bias))
    return attend(routing, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
