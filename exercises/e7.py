"""Exercise 7: the null key. See exercises/e7.md."""

from torch import Tensor

from model import NOTHING, Attended, Attention, Handed, RoPE, Routing, ViTConfig


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Reads v with a routing that may look at no token at all.

    r: q and k (B, H, N, d), bias (H, N, N) or None. v: (B, H, N, d). null: (H,), a logit for each head.
    The null key gives nothing: its v is 0. Returns what is read, (B, H, N, d), and the leak, (B, H, N): the share of
    each row that goes to the null key.
    """
    raise NotImplementedError


class NullAttention(Attention):
    """Attention that reads with a null key. Its logits are a parameter `null` (H,), which starts at 0."""

    def __init__(self, config: ViTConfig) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        """Works like `Attention.forward` on x (B, N, D), but always with its own null key, whatever it is handed."""
        raise NotImplementedError
