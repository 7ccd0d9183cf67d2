# says: equally sharp, and differ equally
# It assumes that a teacher that is sure knows more.
import torch
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    return sum(float(torch.xlogy(maps, maps).sum(-1).mean()) for maps in teacher.attention_maps(images))
