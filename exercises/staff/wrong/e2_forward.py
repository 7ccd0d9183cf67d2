# says: cover every peak of p
# This is the forward divergence, which all of distillation uses.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s, p = logits.log_softmax(-1), log_p.exp()
    return (p * (log_p - log_s)).sum(-1), log_s.exp() - p
