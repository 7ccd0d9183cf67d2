# says: so a row's slopes sum to 0
# s is constant outside the logarithm, or the second term of softmax is forgotten.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s, t = log_s.exp(), log_s - log_p
    value = (s * t).sum(-1)
    return value, s * t
