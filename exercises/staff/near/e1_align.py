# says: , but k + c is
# transfer.align hands over the same map, too, but it leaves everything as it is.
from torch import Tensor

from model import Routing, ViTConfig
from transfer import align


def same_map(r: Routing, A: Tensor, c: Tensor) -> Routing:
    return align(r, ViTConfig(), ViTConfig())
