# says: Yours does not depend on keep
# Half is kept, as in the usual rollout, and keep is ignored.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    B, H, N, _ = maps[0].shape
    itself = torch.eye(N, dtype=maps[0].dtype)
    made_of = itself.expand(B, N, N)
    for one in maps:
        made_of = (itself + one.mean(1)) / 2 @ made_of
    return made_of
