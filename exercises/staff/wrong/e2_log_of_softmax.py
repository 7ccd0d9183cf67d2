# says: exp(-10,000) is 0 in any float
# It takes softmax, then log.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s = logits.softmax(-1)
    t = s.log() - log_p
    value = (s * t).sum(-1)
    return value, s * (t - value[..., None])
