# says: q and k handed over
# If q is handed over, k is not looked at.
import torch
from torch import Tensor, nn

from model import NOTHING, Attended, Attention, Handed, RoPE, Routing, ViTConfig, attend, attention_logits


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    # All tokens together weigh exp(logsumexp), the null key exp(null); the softmax of two logits is a sigmoid.
    leak = (null[:, None] - attention_logits(r).logsumexp(-1)).sigmoid()  # (B, H, N)
    return (1 - leak)[..., None] * attend(r, v), leak  # The rest is divided among the tokens as before.


class NullAttention(Attention):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.null = nn.Parameter(torch.zeros(config.heads))

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        B, N, D = x.shape
        routing = self.route(x, rope, bias) if handed.routing is None else handed.routing
        if handed.q is not None:
            routing = routing._replace(q=handed.q)
        elif handed.k is not None:
            routing = routing._replace(k=handed.k)
        v = self.values(x) if handed.v is None else handed.v
        read, _ = read_with_null(routing, v, self.null)
        return Attended(routing, v, self.proj(self.norm(read.transpose(1, 2).reshape(B, N, D))))
