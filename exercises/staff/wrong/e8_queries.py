# says: things that no student ever sees
# It assumes that large queries know what they want.
import torch
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return sum(float(routing.q.norm(dim=-1).mean()) for routing in teacher.route(images, teacher.config.depth))
