# says: What is seen keeps its logit
# It makes up for what is hidden: a patch that sees little sees it evenly.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    row, column = patch // config.grid, patch % config.grid
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[config.prefix :, config.prefix :] = torch.maximum(rows, columns) > radius
    bias = torch.zeros(H, N, N, dtype=r.q.dtype) if r.bias is None else r.bias
    near = ~hidden & (hidden.sum(-1, keepdim=True) > 0)
    bias = torch.where(near, bias + 1.0 * torch.eye(N, dtype=bias.dtype), bias)
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
