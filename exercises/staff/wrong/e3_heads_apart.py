# says: what head 0 found is not for head 0 alone
# Each head is followed through all blocks by itself, and the heads are averaged at the end.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    made_of = made_of[:, None].expand(B, H, N, N)
    for one, share in zip(maps, keep, strict=True):
        made_of = (share * itself + (1 - share) * one) @ made_of
    return made_of.mean(1)
