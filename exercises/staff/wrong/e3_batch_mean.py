# says: products within an image
# The batch is averaged with the heads, and expanded at the end.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        made_of = (share * itself + (1 - share) * one.mean((0, 1))) @ made_of
    return made_of
