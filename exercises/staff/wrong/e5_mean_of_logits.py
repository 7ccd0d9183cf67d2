# says: the mean of logits
# The logits can be put into the bias without a logarithm.
import torch

from model import Routing, attention_logits


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), attention_logits(r).mean(0))
