"""Exercise 4: blinkers."""

import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2, device=r.q.device)
    row, column = patch // config.grid, patch % config.grid
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    hidden = torch.zeros(N, N, dtype=torch.bool, device=r.q.device)
    hidden[config.prefix :, config.prefix :] = apart > radius
    bias = torch.zeros(H, N, N, dtype=r.q.dtype, device=r.q.device) if r.bias is None else r.bias
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
