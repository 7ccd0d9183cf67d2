# says: which is config.prefix
# It assumes one token before the patches, as in most models.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    patch = torch.arange(config.grid**2)
    row, column = patch // config.grid, patch % config.grid
    rows, columns = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    hidden = torch.zeros(N, N, dtype=torch.bool)
    N_patches = N - 1
    far = torch.maximum(rows, columns) > radius
    far = torch.nn.functional.pad(far, (0, N_patches - len(far), 0, N_patches - len(far)), value=True)
    hidden[1:, 1:] = far
    hidden.fill_diagonal_(False)
    bias = torch.zeros(H, N, N, dtype=r.q.dtype) if r.bias is None else r.bias
    return r._replace(bias=bias.masked_fill(hidden, -torch.inf))
