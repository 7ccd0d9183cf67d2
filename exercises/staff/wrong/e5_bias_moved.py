# says: has no dimension of images
# It moves every part of the routing alike.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], None if r.bias is None else r.bias[partner])


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
