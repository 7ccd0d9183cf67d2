"""Exercise 5, teachers that know nothing. The statement is e5.md."""

import torch

from model import Routing


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    """Each image gets the attention maps of another image of the batch, drawn by `generator`.

    r: q and k (B, H, N, d) with B >= 2, bias (H, N, N) or None. Returns a routing of the same shapes. No image keeps
    its own map, and every map is used once.
    """
    raise NotImplementedError


def no_image(r: Routing) -> Routing:
    """All images get the same maps: the mean map of the batch, head by head.

    r: q and k (B, H, N, d), bias (H, N, N) or None. Returns a routing with q and k (B, H, N, d) and bias (H, N, N).
    """
    raise NotImplementedError
