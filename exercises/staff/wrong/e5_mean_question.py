# says: The images still differ
# Every image has the same mean query, but its own keys.
import torch

from model import Routing


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    bias = r.q.new_zeros(r.q.shape[1], r.q.shape[2], r.q.shape[2]) if r.bias is None else r.bias
    return Routing(r.q.mean(0, keepdim=True).expand_as(r.q), r.k, bias)
