# says: Heads share their work
# It shuffles more than it should: every head draws its own partners.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    q, k = r.q.clone(), r.k.clone()
    B = len(q)
    for head in range(q.shape[1]):
        shift = 1 + head % (B - 1)
        q[:, head], k[:, head] = q[:, head].roll(shift, 0), k[:, head].roll(shift, 0)
    return Routing(q, k, r.bias)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
