# says: Both s and log s depend on every logit
# The mean is subtracted from twice the weights: for the derivative of s t by s, and once more for log s.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s, t = log_s.exp(), log_s - log_p
    value = (s * t).sum(-1)
    return value, 2 * s * (t - value[..., None])
