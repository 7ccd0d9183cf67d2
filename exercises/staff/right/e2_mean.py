# The slope is written as a difference from a mean.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits - logits.logsumexp(-1, keepdim=True)
    surplus = log_s - log_p
    weighed = log_s.exp() * surplus
    return weighed.sum(-1), weighed - log_s.exp() * weighed.sum(-1, keepdim=True)
