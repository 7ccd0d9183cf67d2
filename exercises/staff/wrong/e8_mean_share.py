# says: a mean over everything
# It averages the maps over all their dimensions.
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    return sum(float(maps.mean()) for maps in teacher.attention_maps(images))
