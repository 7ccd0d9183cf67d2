"""Exercise 4: blinkers. The statement is exercises/e4.md."""

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    """A routing in which patches see only patches that are at most `radius` rows and columns away.

    r: q and k (B, H, N, d), bias (H, N, N) or None. config: of the model that has this routing. The routing that comes
    back has a bias (H, N, N), of q's dtype.
    """
    raise NotImplementedError
