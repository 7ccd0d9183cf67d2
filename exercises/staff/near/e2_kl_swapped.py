# says: Its weights p are constant
# transfer.kl with swapped arguments has the right value, but then the slope of "loss = kl" is not the right one.
from torch import Tensor

from transfer import kl


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    s = logits.softmax(-1)
    return kl(s, log_p), s - log_p.exp()
