# says: from the null's, too
# subtracts the largest logit from the tokens' logits alone
import torch
from torch import Tensor, nn

from model import Attended, Attention, Reroute, RoPE, Routing, ViTConfig, attention_logits


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    logits = attention_logits(r)
    weights, extra = (logits - logits.amax(-1, keepdim=True)).exp(), null[:, None].exp()
    total = weights.sum(-1) + extra
    return weights / total[..., None] @ v, extra / total


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
