# says: The mean of q times the mean of k
# It takes the mean of a routing as the mean of its parts.
import torch

from model import Routing


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    q, k = r.q.mean(0, keepdim=True), r.k.mean(0, keepdim=True)
    bias = r.q.new_zeros(r.q.shape[1], r.q.shape[2], r.q.shape[2]) if r.bias is None else r.bias
    return Routing(q.expand_as(r.q), k.expand_as(r.k), bias)
