# says: whose weights p stand still
# transfer.kl with its arguments exchanged has the right value; the slope of "loss = kl" is not the right one then.
from torch import Tensor

from transfer import kl


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s = logits.softmax(-1)
    return kl(s, log_p), s - log_p.exp()
