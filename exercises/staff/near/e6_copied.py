# says: the teacher has no influence
# The nearest thing in the project is transfer.copied, which knows no gate.
from torch import Tensor

from model import Routing
from transfer import copied


def gated_read(theirs: Routing, own: Routing, v: Tensor, gate: Tensor) -> Tensor:
    return copied(theirs, v)


def open_gates(raw: Tensor) -> Tensor:
    return raw.sigmoid()
