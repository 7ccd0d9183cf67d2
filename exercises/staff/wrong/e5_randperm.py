# says: kept its own
# A random order looks like a fair exchange.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    return Routing(r.q[order], r.k[order], r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
