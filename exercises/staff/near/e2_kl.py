# says: cover every peak of p
# transfer.kl is the forward divergence.
from torch import Tensor

from transfer import kl


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return kl(log_p.exp(), logits.log_softmax(-1)), logits.softmax(-1) - log_p.exp()
