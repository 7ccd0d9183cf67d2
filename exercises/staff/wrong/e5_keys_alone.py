# says: and the k of image
# k looks like the part that holds the image, and q like the part that asks.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(len(r.q), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return r._replace(k=r.k[partner])


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
