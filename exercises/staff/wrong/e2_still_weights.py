# says: Its weights p are constant
# This is the slope that one remembers from classification.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s, t = log_s.exp(), log_s - log_p
    value = (s * t).sum(-1)
    return value, s - log_p.exp()
