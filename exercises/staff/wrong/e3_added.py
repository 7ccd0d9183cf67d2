# says: the row of token
# As in a residual stream, what is read is added to what is there.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one, share in zip(maps, keep, strict=True):
        made_of = (share * itself + one.mean(1)) @ made_of
    return made_of
