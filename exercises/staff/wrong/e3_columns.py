# says: transposed and then normalised to sum to 1
# Rows and columns are mixed up, and then made to sum to 1.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        step = share * itself + (1 - share) * one.mean(1).mT
        made_of = step / step.sum(-1, keepdim=True) @ made_of
    return made_of
