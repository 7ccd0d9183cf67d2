# says: which of yours is treated differently
# An index is too far: with three or more blocks the first ones are lost.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in list(zip(maps, keep, strict=True))[-2:]:
        made_of = (share * itself + (1 - share) * one.mean(1)) @ made_of
    return made_of
