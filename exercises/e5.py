"""Exercise 5: teachers that know nothing. See exercises/e5.md."""

import torch

from model import Routing


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    """Gives each image the attention maps of another image in the batch, drawn by `generator`.

    r: q and k (B, H, N, d) with B >= 2, bias (H, N, N) or None. Returns a routing of the same shapes. No image keeps
    its own map, and every map is used once.
    """
    raise NotImplementedError


def no_image(r: Routing) -> Routing:
    """Gives all images the same maps: for each head, the mean map of the batch.

    r: q and k (B, H, N, d), bias (H, N, N) or None. Returns a routing with q and k (B, H, N, d) and bias (H, N, N).
    """
    raise NotImplementedError
