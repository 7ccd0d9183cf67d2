"""The Vision Transformer, from scratch, cut where attention transfer cuts it: into routing and reading.

Attention does two things. It decides where each token looks (*routing*: q, k and any bias, whose softmax is the
attention map), and it brings something back from there (*reading*: v). Here the two are separate methods, so that
one model's routing can be handed to another model's reading.

`ViTConfig()` is the *standard* ViT of Dosovitskiy et al. (arXiv 2010.11929). Each *native component* that some
pretrained family adds to it is one config field, off by default, and a few lines below with its paper's name.
Parameters carry timm's names, so a standard ViT saved here opens in timm.

Shapes: B images, N tokens, H heads, D width, d = D / H. Token order: class token, registers, patches row by row.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UserError(ValueError):
    """A mistake that its user can mend; the scripts print it as one line and exit with status 2."""


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a `word` that is none of `choices`; it names the nearest of them."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(near)}?")


# ---------------------------------------------------------------------------------------------------------------
# Configuration


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT and its native components. The defaults are the standard ViT-B/16."""

    img_size: int = 224
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 0  # 0: no head, `forward` returns what the head would have read
    class_token: bool = True
    # The head reads the class "token" (after the final norm) or the "avg" of the patches (normalised after the mean);
    # "none": there is no head, and the model returns all tokens.
    pool: str = "token"
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    # Native components: the default of each is the standard ViT.
    layerscale: float | None = None  # initial value of the scale on each residual branch
    registers: int = 0
    rel_pos: str | None = None  # relative position bias: a table per "block", or one "shared" by all
    rope: str | None = None  # rotary positions on the patches, as in "eva02" or as in "dinov3"
    qk_norm: bool = False
    swiglu: bool = False
    sub_ln: str | None = None  # a norm inside the "mlp", or in "both" MLP and attention
    pre_norm: bool = False  # a norm before the first block, and patches without a bias
    quick_gelu: bool = False
    qkv_bias: str = "qkv"  # which of q, k and v have a bias: "qkv", "qv" or "none"
    pos_embed: str = "learned"  # or learned for "patches" only, fixed "sincos", "none"

    def __post_init__(self) -> None:
        if self.img_size < self.patch_size or self.img_size % self.patch_size:
            below = max(1, self.img_size // self.patch_size) * self.patch_size
            raise UserError(
                f"image size {self.img_size} is not a multiple of the patch size {self.patch_size}; "
                f"use {below} or {below + self.patch_size}"
            )
        if self.dim % self.heads:
            raise UserError(f"width {self.dim} does not divide into {self.heads} heads")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.img_size // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return self.class_token + self.registers


# The config fields that make a model native. `mlp_ratio` goes with `swiglu`: EVA-02's hidden layer is narrower.
NATIVE_COMPONENTS = (
    "layerscale",
    "registers",
    "rel_pos",
    "rope",
    "qk_norm",
    "swiglu",
    "sub_ln",
    "pre_norm",
    "quick_gelu",
    "qkv_bias",
    "pos_embed",
)


def native_components(config: ViTConfig) -> list[str]:
    """The names of the native components that a model has: its fields that differ from the standard ViT's."""
    return [name for name in NATIVE_COMPONENTS if getattr(config, name) != getattr(ViTConfig, name)]


# ---------------------------------------------------------------------------------------------------------------
# Routing and reading


class Routing(NamedTuple):
    """Where tokens look. The attention map is softmax(q k^T / sqrt(d) + bias)."""

    q: Tensor  # (B, H, N, d), after qk-norm and RoPE: ready to multiply
    k: Tensor  # (B, H, N, d)
    bias: Tensor | None = None  # (H, N, N), e.g. a relative position bias

    def read(self, v: Tensor) -> Tensor:
        """Map times v, without building the map. transfer.py has other ways to the same result."""
        bias = None if self.bias is None else self.bias.to(v.dtype)[None]
        return F.scaled_dot_product_attention(self.q, self.k, v, attn_mask=bias)


def attend(routing: Routing, v: Tensor) -> Tensor:
    """What the routing brings back from v (B, H, N, d): map times v."""
    return routing.read(v)


def attention_logits(routing: Routing) -> Tensor:
    """q k^T / sqrt(d) + bias, (B, H, N, N)."""
    q, k, bias = routing
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return logits if bias is None else logits + bias


def attention_map(routing: Routing) -> Tensor:
    """The map itself, (B, H, N, N), rows sum to 1: for people, tests and whatever cannot do without."""
    return attention_logits(routing).softmax(-1)


class Attended(NamedTuple):
    """What happened in one attention layer."""

    routing: Routing  # the one it read with
    v: Tensor  # (B, H, N, d)
    output: Tensor  # (B, N, D), what it adds to the stream (before LayerScale and drop path)


# A routing to read with, or a function that makes it from the layer's own.
Reroute = Routing | Callable[[Routing], Routing]


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2): routing, then reading."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias == "qkv")
        if config.qkv_bias == "qv":  # BEiT (arXiv 2106.08254): a bias on k adds the same to a whole row of logits
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        if config.qk_norm:  # "Scaling ViT to 22 Billion Parameters" (arXiv 2302.05442), section 2
            self.q_norm = nn.LayerNorm(dim // self.heads, eps=config.norm_eps)
            self.k_norm = nn.LayerNorm(dim // self.heads, eps=config.norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.rel_pos = RelativePositionBias(config) if config.rel_pos == "block" else None
        # Sub-LN (Magneto, arXiv 2210.06423; BEiT-3): what was read is normalised before it is projected.
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.sub_ln == "both" else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor, rows: slice) -> Tensor:
        """Those rows of the qkv matrix applied to x: (B, N, D) to (B, N, rows)."""
        bias = self.qkv.bias
        if hasattr(self, "q_bias"):
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return F.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])

    def route(self, x: Tensor, rope: "RoPE | None" = None, bias: Tensor | None = None) -> Routing:
        """Where the tokens x (B, N, D) look; `rope` and `bias` are shared by all blocks."""
        B, N, D = x.shape
        q, k = self.project(x, slice(0, 2 * D)).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        return Routing(q, k, self.rel_pos() if self.rel_pos else bias)

    def values(self, x: Tensor) -> Tensor:
        """v of the tokens x (B, N, D): (B, H, N, d)."""
        B, N, D = x.shape
        return self.project(x, slice(2 * D, 3 * D)).view(B, N, self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, rope: "RoPE | None", bias: Tensor | None, reroute: Reroute | None = None) -> Attended:
        """The tokens x (B, N, D) look, each where the routing says, and bring back what is there.

        The routing is the layer's own, or `reroute`, and then no q and k are computed, or what the function `reroute`
        makes of the layer's own.
        """
        B, N, D = x.shape
        routing = reroute if isinstance(reroute, Routing) else self.route(x, rope, bias)
        if callable(reroute):
            routing = reroute(routing)
        v = self.values(x)
        output = self.proj(self.norm(attend(routing, v).transpose(1, 2).reshape(B, N, D)))
        return Attended(routing, v, output)


# ---------------------------------------------------------------------------------------------------------------
# Positions


class RelativePositionBias(nn.Module):
    """A learned bias on the map for each offset between two patches and each head (BEiT, arXiv 2106.08254).

    Three more rows of the table serve the class token: looking at patches, looked at by patches, and itself.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        side = 2 * config.grid - 1  # offsets from -(grid - 1) to grid - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side * side + 3, config.heads))
        # On the CPU by name, so that a model built on the meta device still has it (teachers.py loads that way).
        places = torch.cartesian_prod(*[torch.arange(config.grid, device="cpu")] * 2)  # (patches, 2): row, column
        offset = places[:, None] - places[None] + config.grid - 1
        index = torch.empty(len(places) + 1, len(places) + 1, dtype=torch.long, device="cpu")
        index[1:, 1:] = offset[..., 0] * side + offset[..., 1]
        index[0, :], index[:, 0], index[0, 0] = side * side, side * side + 1, side * side + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.index].permute(2, 0, 1).contiguous()  # (H, N, N)


class RoPE(nn.Module):
    """Rotary positions (arXiv 2104.09864): turns each pair of features of a patch's q or k by an angle of its place.

    Half of a head's pairs turn with the row, half with the column, pair i at base^(-i / (d/4)). EVA-02
    (arXiv 2303.11331) counts places on the 16 x 16 grid of its pretraining and pairs neighbours; DINOv3
    (arXiv 2508.10104) measures places from -1 to 1 in whole turns and pairs feature i with i + d/2.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.prefix, self.neighbours = config.prefix, config.rope == "eva02"
        places = torch.arange(config.grid, device="cpu")
        if self.neighbours:
            base, places = 10_000.0, places / config.grid * 16
        else:
            base, places = 100.0, 2 * math.pi * (2 * (places + 0.5) / config.grid - 1)
        pairs = config.dim // config.heads // 4
        angle = places[:, None] * base ** -(torch.arange(pairs, device="cpu") / pairs)  # (grid, d/4)
        rows, columns = angle[:, None].expand(-1, config.grid, -1), angle[None].expand(config.grid, -1, -1)
        angle = torch.cat((rows, columns), dim=-1).flatten(0, 1)  # (patches, d/2)
        angle = angle.repeat_interleave(2, dim=-1) if self.neighbours else angle.repeat(1, 2)  # (patches, d)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x is q or k, (B, H, N, d); the class token and the registers have no place and stay as they are."""
        patches = x[:, :, self.prefix :]
        if self.neighbours:
            turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = patches.chunk(2, dim=-1)
            turned = torch.cat((-second, first), dim=-1)
        turned = patches * self.cos + turned * self.sin
        return torch.cat((x[:, :, : self.prefix], turned.to(x.dtype)), dim=2)


def sincos_positions(config: ViTConfig) -> Tensor:
    """Fixed 2-D sine and cosine positions of the patches (MoCo v3, arXiv 2104.02057; MAE), (1, patches, D)."""
    bands = config.dim // 4
    places = torch.arange(config.grid, dtype=torch.float32)
    angle = places[:, None] * 10_000.0 ** -(torch.arange(bands) / bands)  # (grid, D/4)
    waves = torch.cat((angle.sin(), angle.cos()), dim=-1)
    rows, columns = waves[:, None].expand(-1, config.grid, -1), waves[None].expand(config.grid, -1, -1)
    return torch.cat((columns, rows), dim=-1).reshape(1, -1, config.dim)


# ---------------------------------------------------------------------------------------------------------------
# The rest of a block


class MLP(nn.Module):
    """Two linear layers with GELU, or CLIP's faster approximation of it (arXiv 2103.00020, released code)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.quick_gelu = config.quick_gelu
        self.norm = nn.LayerNorm(hidden, eps=config.norm_eps) if config.sub_ln else nn.Identity()
        self.fc2 = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x)
        return self.fc2(self.norm(x))


class SwiGLU(nn.Module):
    """An MLP whose hidden layer is multiplied by a gate (arXiv 2002.05202; EVA-02, DINOv3 S+)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1_g = nn.Linear(config.dim, hidden)
        self.fc1_x = nn.Linear(config.dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_eps) if config.sub_ln else nn.Identity()
        self.fc2 = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class LayerScale(nn.Module):
    """A learned scale on each feature of a residual branch, small at first (CaiT, arXiv 2103.17239, section 2.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.dim,), config.layerscale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then MLP, each normalised before and added to the stream (pre-norm)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config) if config.layerscale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config) if config.swiglu else MLP(config)
        self.ls2 = LayerScale(config) if config.layerscale is not None else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: RoPE | None,
        bias: Tensor | None,
        paths: Tensor | None = None,
        reroute: Reroute | None = None,
    ) -> tuple[Tensor, Attended]:
        """The stream x (B, N, D) after the block, and what its attention did.

        `paths` (2, B, 1, 1) scales the two branches of each image, as `ViT.draw_paths` draws it; `reroute` as in
        `Attention`.
        """
        attended = self.attn(self.norm1(x), rope, bias, reroute)
        x = x + scaled(self.ls1(attended.output), paths, 0)
        return x + scaled(self.ls2(self.mlp(self.norm2(x))), paths, 1), attended


def scaled(branch: Tensor, paths: Tensor | None, number: int) -> Tensor:
    return branch if paths is None else branch * paths[number].to(branch.dtype)


# ---------------------------------------------------------------------------------------------------------------
# The model


class PatchEmbed(nn.Module):
    """Cuts images (B, 3, S, S) into patches and projects each to a token: (B, patches, D), row by row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size, bias=not config.pre_norm)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


Watch = Callable[[int, Attended], None]  # called with the number of a block, from 0, and what its attention did


class ViT(nn.Module):
    """A Vision Transformer of any `ViTConfig`: images (B, 3, S, S) to logits (B, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patches = config.dim, config.grid**2
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        if config.registers:  # "Vision Transformers Need Registers" (arXiv 2309.16588)
            self.reg_token = nn.Parameter(torch.empty(1, config.registers, dim))
        if config.pos_embed != "none":
            positions = patches + (config.class_token and config.pos_embed != "patches")
            self.pos_embed = nn.Parameter(torch.empty(1, positions, dim), requires_grad=config.pos_embed != "sincos")
        self.norm_pre = nn.LayerNorm(dim, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.rope = RoPE(config) if config.rope else None
        self.rel_pos_bias = RelativePositionBias(config) if config.rel_pos == "shared" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        pooled = config.pool == "avg"
        self.norm = nn.Identity() if pooled else nn.LayerNorm(dim, eps=config.norm_eps)
        self.fc_norm = nn.LayerNorm(dim, eps=config.norm_eps) if pooled and config.num_classes else nn.Identity()
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        if not self.patch_embed.proj.weight.is_meta:  # on the meta device there is nothing to initialise
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights. Matrices get 0.7 / sqrt(fan-in), close to the Xavier rule of MAE and of the 2024 paper.

        The more usual constant 0.02 is about that at width 1,024, and far too small for a nano model of width 64.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("cls_token", "reg_token", "pos_embed"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=0.02)
        if self.config.pos_embed == "sincos":
            positions = self.pos_embed.zero_()
            positions[:, -(self.config.grid**2) :] = sincos_positions(self.config)

    def embed(self, images: Tensor) -> Tensor:
        """The tokens (B, N, D) that enter the first block."""
        config, x = self.config, self.patch_embed(images)
        if config.pos_embed != "none":
            x = x + self.pos_embed[:, -(config.grid**2) :]
        prefix = []
        if config.class_token:
            has_position = config.pos_embed in ("learned", "sincos")
            prefix.append(self.cls_token + self.pos_embed[:, :1] if has_position else self.cls_token)
        if config.registers:
            prefix.append(self.reg_token)
        x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1)
        return self.norm_pre(x)

    def shared_bias(self) -> Tensor | None:
        """The relative position bias (H, N, N) that all blocks add, in the models that have one."""
        return self.rel_pos_bias() if self.rel_pos_bias else None

    def draw_paths(self, images: Tensor) -> Tensor | None:
        """Stochastic depth (arXiv 1603.09382): which branches of which image stay, (depth, 2, B, 1, 1), with mean 1.

        Deeper branches are dropped more often, up to the rate `drop_path`. None in eval mode and without that rate.
        """
        if not self.training or self.config.drop_path == 0:
            return None
        keep = 1 - torch.linspace(0, self.config.drop_path, self.config.depth, device=images.device)
        keep = keep.view(-1, 1, 1, 1, 1)
        return torch.bernoulli(keep.expand(-1, 2, len(images), 1, 1)) / keep

    def forward_features(
        self,
        images: Tensor,
        reroutes: Mapping[int, Reroute] = {},
        watch: Watch | None = None,
        paths: Tensor | None = None,
    ) -> Tensor:
        """The tokens (B, N, D) after the last block and, in models that normalise before pooling, the final norm.

        `reroutes` hands routings to blocks, by number from 0; `watch(number, attended)` is called after each block;
        `paths` are drawn unless given.
        """
        x, bias = self.embed(images), self.shared_bias()
        paths = self.draw_paths(images) if paths is None else paths
        for number, block in enumerate(self.blocks):
            x, attended = block(x, self.rope, bias, None if paths is None else paths[number], reroutes.get(number))
            if watch:
                watch(number, attended)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) from the tokens of `forward_features`."""
        if self.config.pool == "none":
            return tokens
        x = tokens[:, 0] if self.config.pool == "token" else tokens[:, self.config.prefix :].mean(1)
        return self.head(self.fc_norm(x))

    def forward(
        self,
        images: Tensor,
        reroutes: Mapping[int, Reroute] = {},
        watch: Watch | None = None,
        paths: Tensor | None = None,
    ) -> Tensor:
        return self.forward_head(self.forward_features(images, reroutes, watch, paths))

    def route(self, images: Tensor, blocks: int, paths: Tensor | None = None) -> list[Routing]:
        """The routing of the first `blocks` blocks. Computes nothing after the last: no v, no MLP, no head."""
        x, bias, routings = self.embed(images), self.shared_bias(), []
        for number, block in enumerate(self.blocks[:blocks], start=1):
            if number == blocks:
                routings.append(block.attn.route(block.norm1(x), self.rope, bias))
            else:
                x, attended = block(x, self.rope, bias, None if paths is None else paths[number - 1])
                routings.append(attended.routing)
        return routings

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """The attention map of every block, each (B, H, N, N) with rows that sum to 1."""
        return [attention_map(routing) for routing in self.route(images, len(self.blocks))]
