# says: as sharp, and differ as much
# the nearest thing in the code base: the entropy of measures in transfer.py
from torch import Tensor

from model import ViT
from transfer import measures


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    found = [measures(maps, maps, teacher.config)["entropy"].mean() for maps in teacher.attention_maps(images)]
    return -float(sum(found))
