"""Exercise 4: blinkers. See exercises/e4.md."""

from model import Routing, ViTConfig


def windowed(r: Routing, config: ViTConfig, radius: int) -> Routing:
    """Returns a routing in which patches see only patches that are at most `radius` rows and columns away.

    r: q and k (B, H, N, d), bias (H, N, N) or None. config: that of the model with this routing. The returned routing
    has a bias (H, N, N), of q's dtype.
    """
    raise NotImplementedError
