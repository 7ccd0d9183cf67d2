"""Exercise 3: rollout with a share kept. See exercises/e3.md."""

from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    """Returns what tokens are made of after all blocks, (B, N, N): [b, i, j] is the share of the first block's j in i.

    maps: (B, H, N, N) for each block, the first block first; rows sum to 1. keep: (L,), the share of itself that a
    token keeps in each block.
    """
    raise NotImplementedError
