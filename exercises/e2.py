"""Exercise 2: the other divergence, by hand. See exercises/e2.md."""

from torch import Tensor


def reverse_kl(log_p: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the divergence of the student's row s = softmax(logits) from the teacher's row p, and its slope.

    log_p: (..., N), logarithms of shares that sum to 1. logits: (..., N), any numbers.
    Returns the value (...), in nats, and its derivative with respect to each logit (..., N).
    """
    raise NotImplementedError
