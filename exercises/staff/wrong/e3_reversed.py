# says: next to the incoming tokens
# The blocks are multiplied from left to right, as one writes them down.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        made_of = made_of @ (share * itself + (1 - share) * one.mean(1))
    return made_of
