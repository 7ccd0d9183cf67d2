# says: A map is an address
# It predicts the label from the class token's rows, without the images.
import torch
from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    rows = torch.cat([maps[:, :, 0].flatten(1) for maps in teacher.attention_maps(images)], 1).double()
    targets = torch.nn.functional.one_hot(labels).double()
    rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    alike = rows @ rows.mT
    hat = torch.linalg.solve(alike + 0.1 * torch.eye(len(rows)).double(), alike)
    left_out = (targets - hat @ targets) / (1 - hat.diagonal())[:, None]
    return 1 - float(left_out.square().sum() / targets.square().sum())
