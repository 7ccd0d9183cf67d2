# says: there is nothing else to mix
# The strongest head is used instead of the mean, normalised to sum to 1 again.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        read = one.amax(1)
        made_of = (share * itself + (1 - share) * read / read.sum(-1, keepdim=True)) @ made_of
    return made_of
