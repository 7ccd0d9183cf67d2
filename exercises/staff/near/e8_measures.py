# says: equally sharp, and differ equally
# The nearest thing in the project is the entropy from measures in transfer.py.
from torch import Tensor

from model import ViT
from transfer import measures


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    found = [measures(maps, maps, teacher.config)["entropy"].mean() for maps in teacher.attention_maps(images)]
    return -float(sum(found))
