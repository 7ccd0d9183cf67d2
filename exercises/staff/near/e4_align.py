# says: A share of 0 needs a logit of -inf
# transfer.align hides tokens, too, but it hides registers, and from all tokens.
import torch

from model import Routing, ViTConfig
from transfer import align


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    q, k, bias = align(r, config, config)
    H, N = q.shape[1:3]
    return Routing(q, k, torch.zeros(H, N, N, dtype=q.dtype) if bias is None else bias)
