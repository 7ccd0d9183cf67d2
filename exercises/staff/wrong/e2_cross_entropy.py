# says: A divergence is a cross-entropy minus an entropy
# This is -sum s log p, without the student's own entropy.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s = logits.softmax(-1)
    value = -(s * log_p).sum(-1)
    return value, s * (-log_p - value[..., None])
