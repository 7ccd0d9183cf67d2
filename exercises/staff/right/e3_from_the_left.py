# It goes from the last block to the first.
import torch
from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    steps = [
        torch.lerp(one.mean(1), torch.eye(one.shape[-1]).to(one), share) for one, share in zip(maps, keep, strict=True)
    ]
    made_of = steps.pop()
    while steps:
        made_of = made_of @ steps.pop()
    return made_of
