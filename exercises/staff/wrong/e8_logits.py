# says: things that no student ever sees
# It assumes that a teacher is sure if its logits spread far.
import torch
from torch import Tensor

from model import ViT, attention_logits


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        routings = teacher.route(images, teacher.config.depth)
    return sum(float(attention_logits(routing).std()) for routing in routings)
