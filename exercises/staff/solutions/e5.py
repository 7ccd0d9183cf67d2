"""Exercise 5, solved."""

import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)  # the images in a random circle
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)  # each gets the map of its neighbour there: never its own
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)  # (H, N, N); its rows sum to 1, as those of each image do
    # No q and k gives the same map to every image but a bias, and the softmax of log p is p.
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
