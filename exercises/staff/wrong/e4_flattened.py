# says: 1 apart in the list, but 2 in the grid
# The distance is that in the list of tokens.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[config.prefix :, config.prefix :] = (patch[:, None] - patch).abs() > radius
    bias = torch.zeros(H, N, N, dtype=r.q.dtype) if r.bias is None else r.bias
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
