# says: Mix shares
# It mixes logits and calls softmax once, which saves a map.
from torch import Tensor

from model import Routing, attention_logits


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = Routing(*(part if part is None else part.detach() for part in theirs))
    gate = gate[:, None, None]
    return (gate * attention_logits(theirs) + (1 - gate) * attention_logits(own)).softmax(-1) @ v


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
