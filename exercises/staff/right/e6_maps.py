# It mixes the full maps themselves.
from torch import Tensor

from model import Routing, attention_map


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    theirs = attention_map(theirs).detach()
    gate = gate[:, None, None]
    return (gate * theirs + (1 - gate) * attention_map(own)) @ v


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
