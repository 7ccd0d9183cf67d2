# It uses a large finite number in place of infinity, and loops over patches.
import torch

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    H, N = r.q.shape[1:3]
    bias = torch.zeros(H, N, N).to(r.q) if r.bias is None else r.bias.clone()
    for i in range(config.grid**2):
        for j in range(config.grid**2):
            rows, columns = abs(i // config.grid - j // config.grid), abs(i % config.grid - j % config.grid)
            if max(rows, columns) > radius:
                bias[:, config.prefix + i, config.prefix + j] = -1e9
    return Routing(r.q, r.k, bias)
