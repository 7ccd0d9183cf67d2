# says: equally sharp, and differ equally
# It assumes that maps that depend on the image know something about it.
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    return sum(float(maps.var(0).sum(-1).mean()) for maps in teacher.attention_maps(images))
