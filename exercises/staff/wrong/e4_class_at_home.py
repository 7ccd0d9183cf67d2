# says: its row stays
# The class token gets the position of patch 0.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    row, column = patch // config.grid, patch % config.grid
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    hidden = torch.zeros(N, N, dtype=torch.bool)
    far = torch.maximum(rows, columns) > radius
    hidden[config.prefix :, config.prefix :] = far
    if config.class_token:
        hidden[0, config.prefix :] = far[0]
    bias = torch.zeros(H, N, N, dtype=r.q.dtype) if r.bias is None else r.bias
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
