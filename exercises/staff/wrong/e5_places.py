# says: is none of the
# It takes the dimension of tokens for that of images.
import torch

from model import Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    order = torch.randperm(r.k.shape[2], generator=generator).roll(1)
    return r._replace(k=r.k[:, :, order])


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
