# says: logits are not yet logarithms of shares
# It takes logits for log s.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s, t = logits.softmax(-1), logits - log_p
    value = (s * t).sum(-1)
    return value, s * (t - value[..., None])
