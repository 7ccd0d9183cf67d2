# says: every column sums to 1: yours is transposed
# Tokens are multiplied from the left, as if a column said where a token looks.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        made_of = made_of @ (share * itself + (1 - share) * one.mean(1).mT)
    return made_of
