# says: as sharp, and differ as much
# maps that depend on the image know something of the image
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    return sum(float(maps.var(0).sum(-1).mean()) for maps in teacher.attention_maps(images))
