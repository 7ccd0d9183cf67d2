# says: is not used
# For each image it draws one of the others, whichever image has it already.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    B = len(r.q)
    shift = torch.randint(1, B, (B,), generator=generator)
    partner = (torch.arange(B) + shift) % B
    return Routing(r.q[partner], r.k[partner], r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
