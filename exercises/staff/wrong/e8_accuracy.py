# says: besides its maps
# It assumes that a good teacher is one that is right.
import torch
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((teacher(images).argmax(-1) == labels).double().mean())
