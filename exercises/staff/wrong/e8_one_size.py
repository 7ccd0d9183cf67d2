# says: score raised
# The size of deit_nano is taken for granted.
import torch
import torch.nn.functional as F
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    size, first = 8, 1
    shapes = images.amax(1, keepdim=True)  # The brightest channel has the shape in any colour.
    patches = F.unfold(shapes, size, stride=size).mT  # (B, patches, pixels of one)
    # This is what an untrained student reads with each head of each block: (B, depth * H * pixels).
    read = torch.cat([(maps[:, :, 0, first:] @ patches).flatten(1) for maps in teacher.attention_maps(images)], dim=1)
    apart = torch.cdist(read, read).fill_diagonal_(torch.inf)
    return float((labels[apart.argmin(1)] == labels).double().mean())  # The nearest image has the same label.
