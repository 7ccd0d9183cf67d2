# says: what makes heads differ
# One map for all images is taken for one map for all heads, too.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean((0, 1))
    bias = mean.log().expand(r.q.shape[1], -1, -1)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), bias)
