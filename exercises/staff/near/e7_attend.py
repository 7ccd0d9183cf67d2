# says: added to all logits
# the nearest thing in the code base: attend, whose bias could hold the null
import torch
from torch import Tensor, nn

from model import Attended, Attention, Reroute, RoPE, Routing, ViTConfig, attend


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    bias = null[:, None, None].expand(-1, r.q.shape[2], r.q.shape[2])
    bias = bias if r.bias is None else r.bias + bias
    return attend(r._replace(bias=bias), v), torch.zeros_like(v[..., 0])


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
