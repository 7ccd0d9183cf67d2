# says: and the k of image
# The nearest thing in the project is copying with what="k", which hands over k alone.
import torch

from model import Handed, Routing, attention_map


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    handed = Handed(k=r.k.roll(1, 0))  # another image's k
    return r._replace(k=handed.k)


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
