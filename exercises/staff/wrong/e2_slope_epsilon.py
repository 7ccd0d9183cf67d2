# says: The slope needs the same care
# A small number keeps the logarithm of the slope finite.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s = log_s.exp()
    value = (s * (log_s - log_p)).sum(-1)
    t = (s + 1e-12).log() - (log_p.exp() + 1e-12).log()
    return value, s * (t - (s * t).sum(-1, keepdim=True))
