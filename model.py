"""The Vision Transformer, written out, and cut where attention transfer cuts it.

Read this file after README and before transfer.py, down to the end of `Attention`. The rest is for reference: the
standard ViT of Dosovitskiy et al. (arXiv 2010.11929), and the native components, which some pretrained families add.

A block has two layers, attention and an MLP. Attention does two things. It decides where each token looks: this is its
*routing*, q and k, whose softmax is the attention map. And it brings back what is there: this is its *reading*, of v.
Attention transfer moves the routing of one model into another and nothing else, so here the two are separate.

Shapes: B images, N tokens, H heads, width D, d = D / H. The tokens are the class token, the registers, and the patches
of the image row by row, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.errors import UserError

# ---- Routing and reading ---------------------------------------------------------------------------------------------


class Routing(NamedTuple):
    """Where tokens look. The attention map is softmax(q k^T / sqrt(d) + bias)."""

    q: Tensor  # (B, H, N, d), after qk-norm and RoPE: ready to multiply
    k: Tensor  # (B, H, N, d)
    bias: Tensor | None = None  # (H, N, N), e.g. a relative position bias


def attention_logits(routing: Routing) -> Tensor:
    """Returns the logits of the attention map, q k^T / sqrt(d) + bias: (B, H, N, N)."""
    q, k, bias = routing
    logits = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)  # Dividing q costs less than dividing the logits.
    return logits if bias is None else logits + bias


def attention_map(routing: Routing) -> Tensor:
    """Returns (B, H, N, N): entry [..., i, j] is the share of token j in what token i reads. Each row sums to 1."""
    return attention_logits(routing).softmax(-1)


def attend(routing: Routing, v: Tensor) -> Tensor:
    """Reads v (B, H, N, d) with a routing: computes map times v by torch's fused attention, which stores no map."""
    bias = None if routing.bias is None else routing.bias.to(v.dtype)[None]
    return F.scaled_dot_product_attention(routing.q, routing.k, v, attn_mask=bias)


class Attended(NamedTuple):
    """The routing, the v and the output of one attention layer."""

    routing: Routing  # The layer read with this routing.
    v: Tensor  # (B, H, N, d)
    output: Tensor  # (B, N, D), before LayerScale and stochastic depth


class Handed(NamedTuple):
    """What another model hands to a block, to use in place of its own. With None, the block uses its own."""

    routing: Routing | None = None  # A block that is handed a routing computes no q or k.
    q: Tensor | None = None  # (B, H, N, d), used with the block's own k
    k: Tensor | None = None  # (B, H, N, d), used with the block's own q
    v: Tensor | None = None  # (B, H, N, d), read with the block's own map


NOTHING = Handed()


def make_norm(config: ViTConfig, dim: int, present: bool = True) -> nn.Module:
    """Returns a LayerNorm over `dim` features, or an identity if the model has no norm here."""
    return nn.LayerNorm(dim, eps=config.norm_eps) if present else nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2): routing, then reading."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias == "qkv")
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.q_norm = make_norm(config, dim // self.heads, config.qk_norm)
        self.k_norm = make_norm(config, dim // self.heads, config.qk_norm)
        self.rel_pos = RelativePositionBias(config) if config.rel_pos == "block" else None
        self.norm = make_norm(config, dim, config.sub_ln == "both")
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor, rows: slice) -> Tensor:
        """Projects x (B, N, D) with the given rows of the joint weight matrix of q, k and v: (B, N, rows)."""
        bias = self.qkv.bias
        if hasattr(self, "q_bias"):
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return F.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])

    def route(self, x: Tensor, rope: RoPE | None, bias: Tensor | None) -> Routing:
        """Decides where the tokens x (B, N, D) look. All blocks share `rope` and `bias`, if the model has them."""
        B, N, D = x.shape
        both = self.project(x, slice(0, 2 * D)).view(B, N, 2, self.heads, -1)
        q, k = both.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        return Routing(q, k, bias if self.rel_pos is None else self.rel_pos())  # The block's own table replaces `bias`.

    def values(self, x: Tensor) -> Tensor:
        """Returns v (B, H, N, d), which is what each of the tokens x (B, N, D) has to give."""
        B, N, D = x.shape
        return self.project(x, slice(2 * D, 3 * D)).view(B, N, self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, rope: RoPE | None, bias: Tensor | None, handed: Handed = NOTHING) -> Attended:
        """Decides where the tokens x (B, N, D) look, then reads. `handed` replaces the layer's routing, q, k or v."""
        B, N, D = x.shape
        routing = handed.routing or self.route(x, rope, bias)
        if handed.q is not None:
            routing = routing._replace(q=handed.q)
        if handed.k is not None:
            routing = routing._replace(k=handed.k)
        v = self.values(x) if handed.v is None else handed.v
        read = attend(routing, v).transpose(1, 2).reshape(B, N, D)
        return Attended(routing, v, self.proj(self.norm(read)))


# ---- The shape of a ViT, and the native components -------------------------------------------------------------------


def native(default: Any, purpose: str) -> Any:
    """Returns a config field for a native component. `default` is the standard ViT's; `purpose` says what it is for."""
    return field(default=default, metadata={"purpose": purpose})


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT. The defaults are the standard ViT-B/16. Parameters have timm's names."""

    img_size: int = 224  # in pixels
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 0  # With 0 there is no head: `forward` returns pooled tokens, without a norm for "avg".
    class_token: bool = True
    pool: str = "token"  # The head reads the class token ("token") or the patches' mean ("avg"); "none" has no head.
    norm_eps: float = 1e-6
    tanh_gelu: bool = False  # This approximates GELU with a tanh, as code in JAX does by default.
    drop_path: float = 0.0  # This is the rate of stochastic depth (see `ViT.draw_drops`).

    # The other fields are the native components, each with its purpose.
    layerscale: float | None = native(
        None,
        "The initial value of a learned scale on what each layer adds. A layer adds little at first and learns how "
        "much to add, so that deep models train (CaiT, arXiv 2103.17239). At 1e-5, the blocks of an untrained student "
        "add almost nothing: all get nearly the same input, and only small gradients reach v and the MLP.",
    )
    registers: int = native(
        0,
        "The number of spare tokens for information about the whole image. Without them, large models store it in "
        "some background patches, and the maps show artefacts there (Darcet et al., arXiv 2309.16588).",
    )
    rel_pos: str | None = native(
        None,
        "A learned bias on the logits for each offset between two patches. Each 'block' has a table, or one is "
        "'shared' by all (BEiT, arXiv 2106.08254). Where a token looks then depends on offsets, too.",
    )
    rope: str | None = native(
        None,
        "Rotary positions, as in 'eva02' or in 'dinov3': q and k are rotated by their position, so that q k^T depends "
        "on the offset between two patches (Su et al., arXiv 2104.09864).",
    )
    qk_norm: bool = native(
        False,
        "A LayerNorm of q and k in each head. It keeps logits from growing without bound in training, so the softmax "
        "stays soft (Dehghani et al., arXiv 2302.05442, section 2).",
    )
    swiglu: bool = native(
        False,
        "An MLP with a gate, with which each token chooses the hidden features that pass (Shazeer, arXiv 2002.05202). "
        "EVA-02's hidden layer is narrower to save parameters, so `mlp_ratio` belongs to this component.",
    )
    sub_ln: str | None = native(
        None,
        "A norm before the last matrix of the 'mlp', or of 'both' MLP and attention. It bounds what a layer adds, for "
        "stability at scale (Wang et al., arXiv 2210.06423).",
    )
    pre_norm: bool = native(
        False,
        "A norm before the first block. All tokens enter the block with the same scale, whatever the patch embedding "
        "does (CLIP, arXiv 2103.00020).",
    )
    quick_gelu: bool = native(
        False,
        "x sigmoid(1.702 x), a cheap approximation of GELU. CLIP's weights were trained with it (arXiv 2103.00020).",
    )
    qkv_bias: str = native(
        "qkv",
        "Which of q, k and v have a bias: 'qkv', 'qv' or 'none'. A bias b on k adds the same q.b / sqrt(d) to all "
        "logits of a row, which softmax ignores, unless qk-norm or RoPE come between. BEiT omits it (arXiv "
        "2106.08254); EVA-02 follows BEiT; DINOv3 has no bias on q and v either.",
    )
    pos_embed: str = native(
        "learned",
        "Absolute positions: 'learned' for all tokens, learned for the 'patches' alone, fixed waves ('sincos', MoCo "
        "v3, arXiv 2104.02057), or 'none' where relative positions replace them.",
    )

    def __post_init__(self) -> None:
        if self.img_size < self.patch_size or self.img_size % self.patch_size:
            above = self.img_size + -self.img_size % self.patch_size  # This is the next size that fits.
            raise UserError(
                f"image size {self.img_size} is not a multiple of {self.patch_size}, the patch size; use {above}"
            )
        if self.dim % self.heads:
            raise UserError(f"width {self.dim} is not a multiple of {self.heads}, the number of heads")

    @property
    def grid(self) -> int:
        """The number of patches along one side of the image."""
        return self.img_size // self.patch_size

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: the class token and the registers."""
        return self.class_token + self.registers


# These are the names of all native components.
COMPONENTS = [field.name for field in fields(ViTConfig) if "purpose" in field.metadata]


def native_components(config: ViTConfig) -> list[str]:
    """Returns the names of a model's native components: the fields that differ from the standard ViT's."""
    return [name for name in COMPONENTS if getattr(config, name) != getattr(ViTConfig, name)]


# ---- The rest of a block ---------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between them: GELU, or CLIP's approximation of it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.quick_gelu = config.quick_gelu
        self.approximation = "tanh" if config.tanh_gelu else "none"
        self.norm = make_norm(config, hidden, config.sub_ln is not None)
        self.fc2 = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x, approximate=self.approximation)
        return self.fc2(self.norm(x))


class SwiGLU(nn.Module):
    """An MLP with a gate (Shazeer, arXiv 2002.05202): one linear layer says how much of another's output passes."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1_g = nn.Linear(config.dim, hidden)  # This is the gate.
        self.fc1_x = nn.Linear(config.dim, hidden)  # This is multiplied by the gate.
        self.norm = make_norm(config, hidden, config.sub_ln is not None)
        self.fc2 = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class LayerScale(nn.Module):
    """A learned scale for each feature of what a layer adds to the stream (CaiT, arXiv 2103.17239, section 2.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.dim,), config.layerscale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then MLP. Each reads the normalised stream of tokens and adds to the stream.

    If you add a module, its name says to which part of the weights it belongs: to the norms if it begins with "norm",
    to the MLP if it ends in 2, and otherwise to attention (`transfer.part_of`).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config, config.dim)
        self.attn = Attention(config)
        self.ls1 = nn.Identity() if config.layerscale is None else LayerScale(config)
        self.norm2 = make_norm(config, config.dim)
        self.mlp = SwiGLU(config) if config.swiglu else MLP(config)
        self.ls2 = nn.Identity() if config.layerscale is None else LayerScale(config)

    def route(self, x: Tensor, rope: RoPE | None, bias: Tensor | None) -> Routing:
        """Decides where the tokens of the stream x (B, N, D) look in this block, and computes nothing else."""
        return self.attn.route(self.norm1(x), rope, bias)

    def forward(
        self, x: Tensor, rope: RoPE | None, bias: Tensor | None, drops: Tensor | None, handed: Handed = NOTHING
    ) -> tuple[Tensor, Attended]:
        """Returns the stream x (B, N, D) after the block and what attention did. `drops` are (2, B, 1, 1), by layer."""
        attended = self.attn(self.norm1(x), rope, bias, handed)
        x = x + with_drops(self.ls1(attended.output), drops, 0)
        x = x + with_drops(self.ls2(self.mlp(self.norm2(x))), drops, 1)
        return x, attended


def with_drops(added: Tensor, drops: Tensor | None, layer: int) -> Tensor:
    """Returns what a layer adds to the stream, which is 0 for the images that `draw_drops` chose."""
    return added if drops is None else added * drops[layer].to(added.dtype)


# ---- The model -------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """Cuts images (B, 3, S, S) into patches and projects each to a token: (B, patches, D), row by row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        # CLIP's patch embedding has no bias, because the norm after it has one.
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size, bias=not config.pre_norm)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


# Each block has factors (2, B, 1, 1) for its attention and its MLP, or None (see `ViT.draw_drops`).
Drops = Sequence[Tensor | None]


class ViT(nn.Module):
    """A Vision Transformer of any `ViTConfig`: images (B, 3, S, S) to logits (B, classes).

    Without `initialise`, its weights are undefined: a loader must set them and then call `fill_buffers`.
    """

    def __init__(self, config: ViTConfig, initialise: bool = True) -> None:
        super().__init__()
        self.config = config
        dim, patches = config.dim, config.grid**2

        # These modules turn an image into tokens.
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        if config.registers:
            self.reg_token = nn.Parameter(torch.empty(1, config.registers, dim))
        if config.pos_embed != "none":
            positions = patches + (config.class_token and config.pos_embed != "patches")
            self.pos_embed = nn.Parameter(torch.empty(1, positions, dim), requires_grad=config.pos_embed != "sincos")
        self.norm_pre = make_norm(config, dim, config.pre_norm)

        # These are the positions that all blocks share, and the blocks.
        self.rope = RoPE(config) if config.rope else None
        self.rel_pos_bias = RelativePositionBias(config) if config.rel_pos == "shared" else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])

        # These modules turn the tokens into logits. If patches are averaged, the norm comes after the mean, not before.
        averages = config.pool == "avg"
        self.norm = make_norm(config, dim, not averages)
        self.fc_norm = make_norm(config, dim, averages and config.num_classes > 0)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        if initialise:
            self.fill_buffers()
            self.initialise()

    def fill_buffers(self) -> None:
        """Computes the constants, which files of weights do not hold."""
        for module in self.modules():
            if isinstance(module, RoPE | RelativePositionBias):
                module.fill_buffers(self.config)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws the initial weights. In linear layers, biases are 0 and matrices have a standard deviation of 0.02.

        The patch convolution keeps torch's default, as in the code of arXiv 2411.09702. At nano width, 0.02 is far too
        small: all matrices, also the convolution's, have a standard deviation of 0.7 / sqrt(fan-in).
        """
        is_nano = self.config.dim < 128
        for module in self.modules():
            if isinstance(module, nn.Linear) or (is_nano and isinstance(module, nn.Conv2d)):
                deviation = 0.7 / math.sqrt(module.weight[0].numel()) if is_nano else 0.02
                # The paper's code truncates at 100 standard deviations, i.e. never.
                nn.init.normal_(module.weight, std=deviation)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("cls_token", "reg_token", "pos_embed"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=0.02)
        if self.config.pos_embed == "sincos":
            self.pos_embed.zero_()
            self.pos_embed[:, -(self.config.grid**2) :] = sincos_positions(self.config)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the tokens (B, N, D) that enter the first block."""
        config, size = self.config, tuple(images.shape[-2:])
        if size != (config.img_size, config.img_size):
            # Another size may have the same number of patches, but their positions would be wrong.
            raise UserError(
                f"the images have {size[0]} x {size[1]} pixels, "
                f"but the model needs {config.img_size} per side; resize them"
            )
        x = self.patch_embed(images)
        if config.pos_embed != "none":
            x = x + self.pos_embed[:, -(config.grid**2) :]
        first = []
        if config.class_token:
            has_position = config.pos_embed in ("learned", "sincos")
            first.append(self.cls_token + self.pos_embed[:, :1] if has_position else self.cls_token)
        if config.registers:
            first.append(self.reg_token)
        first = [token.expand(len(x), -1, -1) for token in first]
        return self.norm_pre(torch.cat([*first, x], dim=1))

    def shared_bias(self) -> Tensor | None:
        """Returns the relative position bias (H, N, N) that all blocks share, or None if there is none."""
        return None if self.rel_pos_bias is None else self.rel_pos_bias()

    def draw_drops(self, images: Tensor) -> Drops:
        """Draws which layers are dropped for which image: stochastic depth (Huang et al., arXiv 1603.09382).

        Each block gets (2, B, 1, 1), for its attention and its MLP: 0 where the layer is dropped, and otherwise
        1 / keep, so that the mean is 1. Deeper blocks are dropped more often, up to the rate `drop_path`. In eval mode,
        or if the rate is 0, nothing is dropped and each block gets None.
        """
        if not self.training or self.config.drop_path == 0:
            return [None] * self.config.depth
        keep = 1 - torch.linspace(0, self.config.drop_path, self.config.depth, device=images.device)
        keep = keep.view(-1, 1, 1, 1, 1)
        return torch.bernoulli(keep.expand(-1, 2, len(images), 1, 1)) / keep

    def forward_blocks(
        self,
        images: Tensor,
        blocks: int,
        handed: Mapping[int, Handed] | None = None,
        drops: Drops | None = None,
        seen: list[Attended] | None = None,
    ) -> Tensor:
        """Returns the tokens (B, N, D) after the first `blocks` blocks.

        `handed` says what some blocks, numbered from 0, use in place of their own. `drops` are drawn unless given. Each
        block appends what its attention did to the list `seen`.
        """
        x, bias = self.embed(images), self.shared_bias()
        handed = {} if handed is None else handed
        drops = self.draw_drops(images) if drops is None else drops
        for number, block in enumerate(self.blocks[:blocks]):
            x, attended = block(x, self.rope, bias, drops[number], handed.get(number, NOTHING))
            if seen is not None:
                seen.append(attended)
        return x

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the tokens (B, N, D) after the last block and, in models that normalise before pooling, the norm."""
        return self.norm(self.forward_blocks(images, len(self.blocks)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, classes) for the tokens from `forward_features`."""
        if self.config.pool == "none":
            return tokens
        x = tokens[:, 0] if self.config.pool == "token" else tokens[:, self.config.prefix :].mean(1)
        return self.head(self.fc_norm(x))

    def forward(
        self,
        images: Tensor,
        handed: Mapping[int, Handed] | None = None,
        drops: Drops | None = None,
        seen: list[Attended] | None = None,
    ) -> Tensor:
        """Returns the logits (B, classes). The options are those of `forward_blocks`."""
        tokens = self.norm(self.forward_blocks(images, len(self.blocks), handed, drops, seen))
        return self.forward_head(tokens)

    def route(self, images: Tensor, blocks: int, drops: Drops | None = None) -> list[Routing]:
        """Returns the routing of the first `blocks` blocks. In the last one, it computes nothing else: no v, no MLP."""
        seen = []
        x = self.forward_blocks(images, blocks - 1, drops=drops, seen=seen)
        last = self.blocks[blocks - 1].route(x, self.rope, self.shared_bias())
        return [attended.routing for attended in seen] + [last]

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the attention map (B, H, N, N) of every block, for people to look at and for tests."""
        return list(map(attention_map, self.route(images, len(self.blocks))))


def layer_of(name: str, depth: int) -> int:
    """Returns where a parameter is: 0 before the blocks, 1 to `depth` in one of them, `depth` + 1 after them.

    A parameter whose name is not listed here counts as before the blocks.
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "fc_norm.", "head.")) else 0


# ---- Positions -------------------------------------------------------------------------------------------------------


class RelativePositionBias(nn.Module):
    """A learned bias on the logits for each offset between two patches, and each head (BEiT, arXiv 2106.08254).

    The table has three more rows: the class token looks at patches, patches look at it, or it looks at itself.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        offsets = (2 * config.grid - 1) ** 2  # Offsets go from -(grid - 1) to grid - 1, in rows and in columns.
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets + 3, config.heads))

    def fill_buffers(self, config: ViTConfig) -> None:
        """Computes which row of the table each pair of tokens uses: (N, N)."""
        side = 2 * config.grid - 1
        places = torch.cartesian_prod(torch.arange(config.grid), torch.arange(config.grid))  # (patches, 2)
        offset = places[:, None] - places[None] + config.grid - 1
        index = torch.empty(len(places) + 1, len(places) + 1, dtype=torch.long)
        index[1:, 1:] = offset[..., 0] * side + offset[..., 1]
        index[0, :] = side * side
        index[:, 0] = side * side + 1
        index[0, 0] = side * side + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """Returns the bias (H, N, N)."""
        return self.relative_position_bias_table[self.index].permute(2, 0, 1).contiguous()


class RoPE(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): rotates pairs of features of a patch's q and k.

    Half of the pairs rotate with the patch's row, half with its column. In each half, the angle of pair i of d/4 is the
    position times base^(-i / (d/4)). EVA-02 (arXiv 2303.11331) measures positions on the 16 x 16 grid of its
    pretraining, and pairs neighbouring features. DINOv3 (arXiv 2508.10104) scales positions to [-1, 1], multiplies them
    by 2 pi, and pairs feature i with i + d/2.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.prefix, self.neighbours = config.prefix, config.rope == "eva02"

    def fill_buffers(self, config: ViTConfig) -> None:
        """Computes the cosine and sine of the angles of each patch: (patches, d)."""
        places = torch.arange(config.grid)
        if self.neighbours:
            base, places = 10_000.0, places / config.grid * 16
        else:
            base, places = 100.0, 2 * math.pi * (2 * (places + 0.5) / config.grid - 1)
        pairs = config.dim // config.heads // 4
        angle = places[:, None] * base ** -(torch.arange(pairs) / pairs)  # (grid, d/4)
        by_row, by_column = angle.repeat_interleave(config.grid, 0), angle.repeat(config.grid, 1)
        angle = torch.cat((by_row, by_column), dim=-1)  # (patches, d/2), one angle per pair
        angle = angle.repeat_interleave(2, dim=-1) if self.neighbours else angle.repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotates x, a q or k (B, H, N, d). The class token and the registers have no position and are not rotated."""
        patches = x[:, :, self.prefix :]
        if self.neighbours:
            turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = patches.chunk(2, dim=-1)
            turned = torch.cat((-second, first), dim=-1)
        turned = patches * self.cos + turned * self.sin
        return torch.cat((x[:, :, : self.prefix], turned.to(x.dtype)), dim=2)


def sincos_positions(config: ViTConfig) -> Tensor:
    """Returns fixed sine and cosine positions of the patches (MoCo v3, arXiv 2104.02057; MAE): (1, patches, D)."""
    bands = config.dim // 4
    places = torch.arange(config.grid, dtype=torch.float32)
    angle = places[:, None] * 10_000.0 ** -(torch.arange(bands) / bands)  # (grid, D/4)
    waves = torch.cat((angle.sin(), angle.cos()), dim=-1)
    by_row, by_column = waves.repeat_interleave(config.grid, 0), waves.repeat(config.grid, 1)
    return torch.cat((by_column, by_row), dim=-1)[None]  # MAE also has the column first.
