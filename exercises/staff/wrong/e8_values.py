# says: besides its maps
# It reads the teacher's own v, as the teacher does.
import torch
from torch import Tensor

from model import ViT, attend


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    seen = []
    with torch.no_grad():
        teacher(images, seen=seen)
    read = torch.cat([attend(one.routing, one.v)[:, :, 0].flatten(1) for one in seen], 1)
    same = labels[:, None] == labels
    apart = torch.cdist(read, read)
    return float(apart[~same].mean() / apart[same].mean())
