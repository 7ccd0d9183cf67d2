# says: null -1000: you leak nan
# The largest logit is subtracted, but never one below 0.
import torch
from torch import Tensor, nn

from model import NOTHING, Attended, Attention, Handed, RoPE, Routing, ViTConfig, attention_logits


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    logits = attention_logits(r)
    null = null[:, None, None]
    largest = logits.amax(-1, keepdim=True).maximum(null).clamp_min(0)
    weights, weight = (logits - largest).exp(), (null - largest).exp()
    total = weights.sum(-1, keepdim=True) + weight
    return weights / total @ v, (weight / total)[..., 0]


class NullAttention(Attention):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.null = nn.Parameter(torch.zeros(config.heads))

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        B, N, D = x.shape
        routing = self.route(x, rope, bias) if handed.routing is None else handed.routing
        if handed.q is not None:
            routing = routing._replace(q=handed.q)
        if handed.k is not None:
            routing = routing._replace(k=handed.k)
        v = self.values(x) if handed.v is None else handed.v
        read, _ = read_with_null(routing, v, self.null)
        return Attended(routing, v, self.proj(self.norm(read.transpose(1, 2).reshape(B, N, D))))
