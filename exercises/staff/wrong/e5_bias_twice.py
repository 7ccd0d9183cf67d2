# says: already contains its bias
# It keeps the teacher's own bias beside the mean map.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    bias = attention_map(r).mean(0).log()
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), bias if r.bias is None else bias + r.bias)
