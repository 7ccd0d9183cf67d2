# says: things that no student ever sees
# how far the logits of a teacher spread says how sure it is
import torch
from torch import Tensor

from model import ViT, attention_logits


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        routings = teacher.route(images, teacher.config.depth)
    return sum(float(attention_logits(routing).std()) for routing in routings)
