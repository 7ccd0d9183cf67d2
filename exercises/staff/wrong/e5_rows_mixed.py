# says: Do you take the mean over images
# It takes the mean over everything that is not a head or a key.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean((0, 2)).log()
    bias = mean[:, None].expand(-1, r.q.shape[2], -1)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), bias)
