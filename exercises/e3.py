"""Exercise 3: rollout with a share kept. The statement is exercises/e3.md."""

from torch import Tensor


def rollout(maps: list[Tensor], keep: Tensor) -> Tensor:
    """What each token is made of after all blocks: (B, N, N), at [b, i, j] the share of the first block's token j in i.

    maps: one (B, H, N, N) for each block, the first block first; rows sum to 1. keep: (L,), the share of itself that a
    token keeps in each block.
    """
    raise NotImplementedError
