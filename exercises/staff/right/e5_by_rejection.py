# Orders are drawn until no image keeps its own map, and log 0 is avoided.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    images = torch.arange(len(r.q))
    order = images
    while (order == images).any():
        order = torch.randperm(len(images), generator=generator)
    return r._replace(q=r.q[order], k=r.k[order])


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(r.q * 0, r.k, mean.clamp_min(torch.finfo(mean.dtype).tiny).log())
