"""Exercise 7, the null key. The statement is e7.md."""

from torch import Tensor

from model import NOTHING, Attended, Attention, Handed, RoPE, Routing, ViTConfig


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Reads v with a routing that may look at no token at all.

    r: q and k (B, H, N, d), bias (H, N, N) or None. v: (B, H, N, d). null: (H,), a logit in each head.
    The null key has nothing to give: its v is 0. Returns what is read (B, H, N, d), and the share of each row that goes
    to the null key, the leak (B, H, N).
    """
    raise NotImplementedError


class NullAttention(Attention):
    """Attention that reads with a null key. Its logits are a parameter `null` (H,), 0 at first."""

    def __init__(self, config: ViTConfig) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        """As `Attention.forward`, x (B, N, D): also where another model says where to look, the null key is its own."""
        raise NotImplementedError
