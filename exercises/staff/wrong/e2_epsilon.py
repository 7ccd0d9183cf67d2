# says: A small number inside a logarithm
# "1e-12 against log 0" is too small to be noticed elsewhere.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s, p = logits.softmax(-1), log_p.exp()
    t = (s + 1e-12).log() - (p + 1e-12).log()
    value = (s * t).sum(-1)
    return value, s * (t - value[..., None])
