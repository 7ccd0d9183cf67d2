# Only the teacher's map is under no_grad, and v is read with it outside.
import torch
from torch import Tensor

from model import Routing, attend, attention_map


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    with torch.no_grad():
        looks = attention_map(theirs)
    gate = gate[:, None, None]
    return gate * (looks @ v) + (1 - gate) * attend(own, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
