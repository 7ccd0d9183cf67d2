# says: If the score is random
# It reads through a random projection, to save time.
import torch
import torch.nn.functional as F
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    size, first = teacher.config.patch_size, teacher.config.prefix
    pixels = F.unfold(images.amax(1, keepdim=True), size, stride=size).mT  # (B, patches, pixels)
    read = torch.cat([(maps[:, :, 0, first:] @ pixels).flatten(1) for maps in teacher.attention_maps(images)], 1)
    read = read @ torch.randn(read.shape[1], 32).to(read)
    apart = torch.cdist(read, read).fill_diagonal_(torch.inf)
    return float((labels[apart.argmin(1)] == labels).double().mean())
