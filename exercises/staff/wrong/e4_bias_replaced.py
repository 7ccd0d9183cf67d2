# says: Add yours to the bias that is there
# It makes its own bias and forgets that of the routing.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    row, column = patch // config.grid, patch % config.grid
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[config.prefix :, config.prefix :] = torch.maximum(rows, columns) > radius
    return r._replace(bias=torch.zeros(H, N, N, dtype=r.q.dtype).masked_fill(hidden, -torch.inf))
