# says: as if it had none
# computes the logits by hand from q and k
import torch
from torch import Tensor, nn

from model import Attended, Attention, Reroute, RoPE, Routing, ViTConfig


def read_with_null(r: Routing, v: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    logits = r.q @ r.k.mT / r.q.shape[-1] ** 0.5
    leak = (null[:, None] - logits.logsumexp(-1)).sigmoid()
    return (1 - leak)[..., None] * (logits.softmax(-1) @ v), leak


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
