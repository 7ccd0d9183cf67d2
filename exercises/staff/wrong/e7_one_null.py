# says: Does each head have a null of its own
# one null for all heads
import torch
from torch import Tensor, nn

from model import Attended, Attention, Reroute, RoPE, Routing, ViTConfig, attend, attention_logits


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    leak = (null.max() - attention_logits(r).logsumexp(-1)).sigmoid()
    return (1 - leak)[..., None] * attend(r, v), leak


class NullAttention(Attention):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.null = nn.Parameter(torch.zeros(config.heads))

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, reroute: Reroute | None = None) -> Attended:
        B, N, D = x.shape
        v = self.values(x)
        if isinstance(reroute, Routing):
            routing = reroute
        else:
            routing = self.route(x, rope, bias)
            if reroute is not None:
                routing, v = reroute(routing, v)
        read, _ = read_with_null(routing, v, self.null)
        return Attended(routing, v, self.proj(self.norm(read.transpose(1, 2).reshape(B, N, D))))
