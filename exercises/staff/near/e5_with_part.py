# says: and the k of image
# the nearest thing in the code base: transfer.with_part hands over k alone
import torch

from model import Routing, attention_map
from transfer import with_part


def other_image(r: Routing, generator: torch.Generator) -> Routing:
    own = Routing(r.q, r.k.roll(1, 0), r.bias)  # another image's k
    return with_part(r, r.q, own, "k")[0]


def no_image(r: Routing) -> Routing:
    mean = attention_map(r).mean(0)
    return Routing(torch.zeros_like(r.q), torch.zeros_like(r.k), mean.log())
