"""Attention transfer: a teacher's attention moves to a student, and nothing else does.

*Attention Copy*: at every forward pass the student reads with the teacher's routing. *Attention Distillation*: the
student has its own routing, and a loss pulls its maps to the teacher's (Li et al., arXiv 2411.09702). The variants of
that paper, and those that Qin et al. (arXiv 2605.07191) use to ask why transfer fails, are here too.

No whole map is built where fused attention can do without: copying is `attend(teacher's routing, student's v)`, and
the cross-entropy of two maps follows from q and k alone (`flash_cross_entropy`; on CPUs `ReadAndCompare`, while the
student reads). `plain_divergence` is that loss written out, and serves all others.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import (
    Attended,
    Reroute,
    Routing,
    UserError,
    ViT,
    ViTConfig,
    attend,
    attention_logits,
    attention_map,
    native_components,
    unknown,
)

METHODS = ("copy", "distill")
WHAT = ("map", "q", "k", "v", "output")
PARTS = ("attention", "mlp", "norms", "embeddings")

# ---------------------------------------------------------------------------------------------------------------
# Losses between maps
#
# All are a divergence between two rows of attention, averaged over images, heads and queries. Each takes the teacher's
# probabilities p and the logarithm log_s of the student's, both (..., N), and returns (...).


def cross_entropy(p: Tensor, log_s: Tensor) -> Tensor:
    """In nats; at least the entropy of p, which it reaches where the two are equal."""
    return -(p * log_s).sum(-1)


def kl(p: Tensor, log_s: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats: the cross-entropy less the entropy of p, so it has the same gradient."""
    return (torch.xlogy(p, p) - p * log_s).sum(-1)


def mse(p: Tensor, log_s: Tensor) -> Tensor:
    """Squared error, summed over the row."""
    return (p - log_s.exp()).square().sum(-1)


def js(p: Tensor, log_s: Tensor) -> Tensor:
    """Jensen-Shannon divergence, from 0 to log 2."""
    log_mean = ((p + log_s.exp()) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()
    return (kl(p, log_mean) + (log_s.exp() * (log_s - log_mean)).sum(-1)) / 2


def cosine(p: Tensor, log_s: Tensor) -> Tensor:
    """1 - the cosine of the angle between the two, from 0 to 1."""
    return 1 - F.cosine_similarity(p, log_s.exp(), dim=-1)


LOSSES = {loss.__name__: loss for loss in (cross_entropy, kl, mse, js, cosine)}


def plain_divergence(teacher: Routing, student: Routing, loss: Callable = cross_entropy) -> Tensor:
    """The loss written out, with both maps in memory: the text to read, and the truth for the tests of fast paths."""
    return loss(attention_map(teacher), attention_logits(student).log_softmax(-1)).mean()


def flash_cross_entropy(teacher: Routing, student: Routing) -> Tensor:
    """`plain_divergence` with cross-entropy, in value and gradient, but no N x N tensor per head is ever built.

    For one query with teacher's row p and the student's logits s_j = q.k_j / sqrt(d),

        cross-entropy = logsumexp(s) - sum_j p_j s_j = logsumexp(s) - q.(P_t K) / sqrt(d),

    and P_t K is the teacher's attention reading the student's keys. The derivative of logsumexp is the softmax itself,
    so the loss has the gradient of q.(P_s K - P_t K) / sqrt(d) with P_s held constant: the student's attention reading
    its own keys, an operation that hands out the logsumexp too. The student must have no bias.
    """
    q, k, _ = student
    scale = 1 / math.sqrt(q.shape[-1])
    under_teacher = attend(teacher, k)
    under_student, logsumexp = attend_with_logsumexp(q.detach(), k.detach(), k)
    value = logsumexp.mean() - (q * under_teacher).sum(-1).mean() * scale
    slope = (q * (under_student - under_teacher)).sum(-1).mean() * scale
    return value.detach() + slope - slope.detach()


def attend_with_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Fused attention (B, H, N, d) and the logsumexp of its logits (B, H, N), from the operator below F.scaled_dot_...

    On CUDA it is the one that takes float32; its logsumexp is padded to a multiple of 32 queries.
    """
    if q.is_cuda:
        out, logsumexp = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        return out, logsumexp[..., : q.shape[2]]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]


# ---------------------------------------------------------------------------------------------------------------
# The same for CPUs, where a piece of a map fits the cache
#
# The backward pass of fused attention computes the gradients of q, k and v, wanted or not. A frozen map needs fewer
# products, so here it is built again in pieces, some query rows of some images, each small enough for the cache.


def by_head(x: Tensor, images: slice) -> Tensor:
    """q, k or v of some images, (heads of all of them, N, d)."""
    return x[images].flatten(0, 1)


def pieces_of_map(q: Tensor, k: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """The map piece by piece: some images, some query rows, and their probabilities (heads of all images, rows, N).

    A piece is about a megabyte in float32, and never has all rows of an image, so that no whole map is ever built.
    """
    B, H, N, d = q.shape
    row_count = min(64, (N + 1) // 2)
    image_count = max(1, 2**18 // (H * row_count * N))
    for first_image in range(0, B, image_count):
        images = slice(first_image, first_image + image_count)
        q_piece, k_piece = by_head(q, images) / math.sqrt(d), by_head(k, images)
        for first_row in range(0, N, row_count):
            rows = slice(first_row, first_row + row_count)
            logits = torch.bmm(q_piece[:, rows], k_piece.transpose(1, 2))
            if bias is not None:
                logits.view(-1, *bias[:, rows].shape).add_(bias[:, rows])
            yield images, rows, logits.softmax(-1)


class ReadAndCompare(torch.autograd.Function):
    """The student reads v by its own routing, and compares that with the teacher's: (what was read, cross-entropy).

    The backward pass of fused attention (FlashAttention-2, arXiv 2307.08691) has, from the gradient dO of what was read
    and O itself, dP = dO v^T, delta = dO.O for each row, and P_s * (dP - delta) as gradient of the student's logits.
    With g, the gradient of one row's loss, the loss adds g (P_s - P_t). Together that is

        P_s * (dP - (delta - g)) - g P_t,

    and the first term is fused attention again, if given an O for which delta is smaller by g. So of the loss, only the
    products with P_t are left to do: P_t K, which its value needs as in `flash_cross_entropy`, and P_t^T Q.
    """

    @staticmethod
    def forward(ctx, teacher_q, teacher_k, teacher_bias, q, k, v):
        out, logsumexp = attend_with_logsumexp(q, k, v)
        our_q, our_k = q.contiguous(), k.contiguous()
        read_k, read_q = q.new_zeros(q.shape), q.new_zeros(q.shape)  # P_t K and P_t^T Q
        for images, rows, p in pieces_of_map(teacher_q, teacher_k, teacher_bias):
            by_head(read_k, images)[:, rows] = torch.bmm(p, by_head(our_k, images))
            by_head(read_q, images).baddbmm_(p.transpose(1, 2), by_head(our_q, images)[:, rows])
        ctx.save_for_backward(q, k, v, out, logsumexp, read_k, read_q)
        return out, logsumexp.mean() - (our_q * read_k).sum(-1).mean() / math.sqrt(q.shape[-1])

    @staticmethod
    def backward(ctx, grad, loss_grad):
        q, k, v, out, logsumexp, read_k, read_q = ctx.saved_tensors
        g, d, tiny = loss_grad / logsumexp.numel(), q.shape[-1], 1e-15
        # O - g dO / |dO|^2 has that delta. Where dO is zero (no one needs that token), something tiny has to stand in.
        norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        grad = torch.where(norm < tiny, tiny / math.sqrt(d), grad)
        out = torch.addcmul(out, grad, -g / norm.clamp_min(tiny).square())
        q_grad, k_grad, v_grad = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, logsumexp, 0.0, False
        )
        scale = g / math.sqrt(d)
        return None, None, None, q_grad.addcmul_(read_k, -scale), k_grad.addcmul_(read_q, -scale), v_grad


class ComparedRouting(Routing):
    """The student's own routing. To read with it leaves its cross-entropy to the `teacher`'s in `loss`."""

    teacher: Routing
    loss: Tensor

    def read(self, v: Tensor) -> Tensor:
        out, self.loss = ReadAndCompare.apply(*self.teacher, self.q, self.k, v)
        return out


def compared_with(theirs: Routing, own: Routing) -> Routing:
    """A `ComparedRouting`, or just the own one where that cannot be."""
    if own.bias is not None or own.q.dtype.itemsize < 4:
        return own  # fused attention gives a bias no gradient, and the loss wants float32
    compared = ComparedRouting(*own)
    compared.teacher = theirs
    return compared


class RowwiseRead(torch.autograd.Function):
    """`attend` with a frozen routing P: fused forward; backward, the gradient of v is P^T times that of the output."""

    @staticmethod
    def forward(ctx, q, k, bias, v):
        ctx.save_for_backward(q, k, bias)
        return Routing(q, k, bias).read(v)

    @staticmethod
    def backward(ctx, grad):
        q, k, bias = ctx.saved_tensors
        grad, v_grad = grad.contiguous(), grad.new_zeros(grad.shape)
        for images, rows, p in pieces_of_map(q, k, bias):
            by_head(v_grad, images).baddbmm_(p.transpose(1, 2), by_head(grad, images)[:, rows])
        return None, None, None, v_grad


class RowwiseRouting(Routing):
    """A frozen routing that reads by `RowwiseRead`."""

    def read(self, v: Tensor) -> Tensor:
        return RowwiseRead.apply(*self, v)


class PlainRouting(Routing):
    """A routing that builds its map to read with: the definition of copying, and what it costs."""

    def read(self, v: Tensor) -> Tensor:
        return attention_map(self).to(v.dtype) @ v


# ---------------------------------------------------------------------------------------------------------------
# Aligning teacher and student


def parse_numbers(numbers: int | str | list[int] | None, available: int, what: str) -> list[int]:
    """Numbers of blocks or heads, counted from 0: a count (the first so many), "3-8", "0,4,8", a list, or all."""
    try:
        if numbers is None:
            chosen = range(available)
        elif isinstance(numbers, (list, tuple, range)):
            chosen = sorted(set(numbers))
        elif "-" in str(numbers).strip("-"):
            first, last = map(int, str(numbers).split("-"))
            chosen = range(first, last + 1)
        elif "," in str(numbers):
            chosen = sorted({int(number) for number in str(numbers).split(",") if number})
        else:
            chosen = range(int(numbers))
    except ValueError:
        raise UserError(f"{what} '{numbers}' is no count (9), range (3-8) or list (0,4,8)") from None
    if not chosen or chosen[0] < 0 or chosen[-1] >= available:
        raise UserError(
            f"{what} {numbers} is out of range: there are {available}; choose a count of 1 to {available}, "
            f"or numbers from 0 to {available - 1}, as 1-2 or 0,3"
        )
    return list(chosen)


def check_match(teacher: ViTConfig, student: ViTConfig) -> None:
    """Raises a `UserError` unless the student can look where the teacher looks."""
    for field, meaning in (
        ("grid", "patches a side"),
        ("depth", "blocks"),
        ("heads", "heads"),
        ("dim", "features"),
        ("class_token", "class tokens"),
    ):
        theirs, ours = getattr(teacher, field), getattr(student, field)
        if theirs != ours:
            raise UserError(
                f"the teacher has {theirs:d} {meaning} and the student {ours:d}; attention transfer needs "
                f"as many of both"
            )
    if student.registers not in (0, teacher.registers):
        raise UserError(
            f"the teacher has {teacher.registers} registers and the student {student.registers}; give the "
            f"student the same number or none"
        )


def drop_registers(x: Tensor, dim: int, teacher: ViTConfig, student: ViTConfig) -> Tensor:
    """Takes the tokens that only the teacher has out of dimension `dim` of its tensor."""
    if teacher.registers == student.registers:
        return x
    first = int(teacher.class_token)
    return torch.cat((x.narrow(dim, 0, first), x.narrow(dim, teacher.prefix, x.shape[dim] - teacher.prefix)), dim)


def align(routing: Routing, teacher: ViTConfig, student: ViTConfig) -> Routing:
    """The teacher's routing among the student's tokens. Registers that only the teacher has are out before the softmax,
    so that every row of the map still sums to 1."""
    q, k = (drop_registers(x, 2, teacher, student) for x in (routing.q, routing.k))
    bias = routing.bias
    if bias is not None:
        bias = drop_registers(drop_registers(bias, 1, teacher, student), 2, teacher, student)
    return Routing(q, k, bias)


# ---------------------------------------------------------------------------------------------------------------
# Attention transfer


class AttentionTransfer(nn.Module):
    """A student that trains with a teacher's attention: images (B, 3, S, S) to (logits, transfer loss).

    Args:
        student, teacher: of the same grid, depth, heads and width. The teacher is frozen, and no part of `state_dict`.
        method: "copy" (the loss is 0, and the teacher is needed in evaluation too) or "distill".
        blocks, heads: which of them, as in `parse_numbers`; all unless told.
        what: "map"; "q" or "k" (copy: only that one is the teacher's, distil: mean squared error); "v" or "output"
            (what attention adds to the stream; distil only, mean squared error).
        loss, temperature: for maps, one of `LOSSES`, of softmax(logits / temperature). It is summed over blocks.
        flash: False builds the maps, as the definitions say; the result is the same. Other losses than cross-entropy,
            and students whose routing has a bias, always build them.
    """

    def __init__(
        self,
        student: ViT,
        teacher: ViT | None,
        method: str = "distill",
        blocks=None,
        what: str = "map",
        loss: str = "cross_entropy",
        heads=None,
        flash: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        for kind, word, choices in ("method", method, METHODS), ("what", what, WHAT), ("loss", loss, LOSSES):
            if word not in choices:
                raise unknown(kind, word, choices)
        if method == "copy" and what in ("v", "output"):
            raise UserError(f"{what} can be distilled, not copied; use method distill, or copy map, q or k")
        if what == "output" and heads is not None:
            raise UserError("the output mixes all heads; leave heads out, or distil map, q, k or v")
        if what != "map" and (loss != "cross_entropy" or temperature != 1):
            raise UserError(f"{what} is transferred as it is; leave out loss and temperature, which are for maps")
        if temperature <= 0:
            raise UserError(f"temperature {temperature} is not above 0")
        self.student, self.method, self.what, self.flash = student, method, what, flash
        self.loss, self.temperature = LOSSES[loss], temperature
        self.blocks = parse_numbers(blocks, student.config.depth, "blocks")
        self.heads = None if heads is None else parse_numbers(heads, student.config.heads, "heads")
        if teacher is not None:
            check_match(teacher.config, student.config)
            teacher.eval().requires_grad_(False)
        self.hidden = [teacher]  # in a list, where nn.Module does not look: no entry in state_dict, no train()

    @property
    def teacher(self) -> ViT:
        if self.hidden[0] is None:
            raise UserError(f"method {self.method} needs the teacher here; give AttentionTransfer one")
        return self.hidden[0]

    def _apply(self, function, *args, **kwargs):
        if self.hidden[0] is not None:
            self.teacher._apply(function, *args, **kwargs)  # so that .to(device) moves the teacher too
        return super()._apply(function, *args, **kwargs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # In training, teacher and student drop the same branches of an image (arXiv 2411.09702).
        paths = self.student.draw_paths(images)
        if self.method == "copy":
            logits = self.student(images, self.reroutes(images, paths), paths=paths)
            return logits, logits.new_zeros(())
        if not self.training:
            logits = self.student(images)
            return logits, logits.new_zeros(())
        targets, losses = self.targets(images, paths), []

        def watch(number: int, attended: Attended) -> None:
            if number in targets:
                losses.append(self.block_loss(targets[number], attended))

        logits = self.student(images, self.comparisons(images, targets), watch, paths)
        return logits, torch.stack(losses).sum()

    def in_pieces(self, images: Tensor) -> bool:
        """Whether what is made for CPUs applies; it has no mixed precision."""
        return self.flash and images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

    # Copy

    def reroutes(self, images: Tensor, paths: Tensor | None) -> dict[int, Reroute]:
        """What each block of the student reads with, by block."""
        kind = PlainRouting if not self.flash else RowwiseRouting if self.in_pieces(images) else Routing
        reroutes: dict[int, Reroute] = {}
        for number, theirs in self.targets(images, paths).items():
            if self.what == "map" and self.heads is None:
                reroutes[number] = kind(*theirs)
            else:
                reroutes[number] = lambda own, theirs=theirs: self.mix(own, theirs)
        return reroutes

    def mix(self, own: Routing, theirs: Routing) -> Routing:
        """The student's own routing, with the teacher's q, k or both in the chosen heads."""
        chosen = torch.zeros(own.q.shape[1], 1, 1, dtype=torch.bool, device=own.q.device)
        chosen[slice(None) if self.heads is None else self.heads] = True
        q = torch.where(chosen, theirs.q, own.q) if self.what in ("map", "q") else own.q
        k = torch.where(chosen, theirs.k, own.k) if self.what in ("map", "k") else own.k
        bias = own.bias
        if self.what == "map" and (own.bias is not None or theirs.bias is not None):
            zero = q.new_zeros(())
            bias = torch.where(chosen, zero if theirs.bias is None else theirs.bias, zero if bias is None else bias)
            bias = bias.expand(-1, q.shape[2], q.shape[2])
        return (Routing if self.flash else PlainRouting)(q, k, bias)

    # Distillation

    @torch.no_grad()
    def targets(self, images: Tensor, paths: Tensor | None) -> dict[int, Routing | Tensor]:
        """What the student is to have from the teacher, by block, among the student's tokens: routings, v or output.

        The teacher runs no further than that.
        """
        teacher, needed = self.teacher, self.blocks[-1] + 1
        theirs, ours = teacher.config, self.student.config
        if self.what in ("map", "q", "k"):
            routings = teacher.route(images, needed, paths)
            return {number: align(routings[number], theirs, ours) for number in self.blocks}
        x, bias, targets = teacher.embed(images), teacher.shared_bias(), {}
        for number, block in enumerate(teacher.blocks[:needed]):
            if number + 1 == needed and self.what == "v":
                attended = Attended(None, block.attn.values(block.norm1(x)), None)
            elif number + 1 == needed:
                attended = block.attn(block.norm1(x), teacher.rope, bias)
            else:
                x, attended = block(x, teacher.rope, bias, None if paths is None else paths[number])
            if number in self.blocks:
                target = attended.v if self.what == "v" else attended.output
                targets[number] = drop_registers(target, target.ndim - 2, theirs, ours)
        return targets

    def comparisons(self, images: Tensor, targets: dict[int, Routing | Tensor]) -> dict[int, Reroute]:
        """Makes the student's routings compare themselves, in the one case that `ReadAndCompare` is for."""
        simple = self.what == "map" and self.loss is cross_entropy and self.heads is None and self.temperature == 1
        if not (simple and self.in_pieces(images)):
            return {}
        return {number: partial(compared_with, theirs) for number, theirs in targets.items()}

    def block_loss(self, target: Routing | Tensor, attended: Attended) -> Tensor:
        """The loss of one block, in float32 whatever the autocast."""
        own = attended.routing
        if isinstance(own, ComparedRouting):
            return own.loss
        with torch.autocast(own.q.device.type, enabled=False):
            if self.what == "map":
                return self.map_loss(*(Routing(*map(at_least_float32, routing)) for routing in (target, own)))
            ours = {"q": own.q, "k": own.k, "v": attended.v, "output": attended.output}[self.what]
            theirs = getattr(target, self.what) if isinstance(target, Routing) else target
            if self.heads is not None:
                theirs, ours = theirs[:, self.heads], ours[:, self.heads]
            return F.mse_loss(at_least_float32(ours), at_least_float32(theirs))

    def map_loss(self, theirs: Routing, own: Routing) -> Tensor:
        if self.heads is not None:
            theirs, own = (
                Routing(
                    routing.q[:, self.heads],
                    routing.k[:, self.heads],
                    None if routing.bias is None else routing.bias[self.heads],
                )
                for routing in (theirs, own)
            )
        if self.temperature != 1:
            theirs, own = (
                Routing(
                    routing.q / self.temperature,
                    routing.k,
                    None if routing.bias is None else routing.bias / self.temperature,
                )
                for routing in (theirs, own)
            )
        fused = own.q.device.type in ("cpu", "cuda")
        if not (self.flash and fused) or self.loss is not cross_entropy or own.bias is not None:
            return plain_divergence(theirs, own, self.loss)
        return flash_cross_entropy(theirs, own)


def at_least_float32(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dtype.itemsize >= 4 else x.float()


# ---------------------------------------------------------------------------------------------------------------
# Parts of the teacher's weights


def part_of(name: str) -> str:
    """To which of `PARTS` a parameter belongs, or "head" for what follows the last block."""
    if name.startswith("blocks."):
        layer = name.split(".")[2]
        return {"attn": "attention", "ls1": "attention", "mlp": "mlp", "ls2": "mlp"}.get(layer, "norms")
    if name.startswith("rel_pos_bias."):
        return "attention"
    if name.startswith("norm_pre."):
        return "norms"
    return "embeddings" if name.startswith(("patch_embed.", "cls_token", "reg_token", "pos_embed")) else "head"


@torch.no_grad()
def init_from(student: ViT, teacher: ViT, parts: str) -> None:
    """Initialises parts of the student with the teacher's weights: "all", or a comma list of `PARTS`.

    "mlp,norms,embeddings" is the pretrained model with only its attention re-initialised; "all" is the start of
    fine-tuning. The final norm and the head, which depend on the task, stay the student's own. Both must have the same
    tensors in those parts; `UserError` says what differs.
    """
    chosen = PARTS if parts == "all" else [part.strip() for part in parts.split(",")]
    for part in chosen:
        if part not in PARTS:
            raise unknown("part", part, ("all", *PARTS))
    theirs, ours = (
        {name: value for name, value in model.state_dict().items() if part_of(name) in chosen}
        for model in (teacher, student)
    )
    for name in sorted(theirs.keys() | ours.keys()):
        left, right = (tuple(side[name].shape) if name in side else "none" for side in (theirs, ours))
        if left != right:
            differ = [
                component
                for component in native_components(teacher.config)
                if getattr(teacher.config, component) != getattr(student.config, component)
            ]
            raise UserError(
                f"cannot initialise {part_of(name)} from the teacher: {name} is {left} there and {right} "
                f"in the student; give it {', '.join(differ) or 'the same size'} (--student native)"
            )
    for name, value in ours.items():
        value.copy_(theirs[name])


# ---------------------------------------------------------------------------------------------------------------
# Measures


@torch.no_grad()
def measures(teacher_map: Tensor, student_map: Tensor, config: ViTConfig) -> dict[str, Tensor]:
    """How two maps (B, H, N, N) of one block agree, and what each looks like: per head (H,), averaged over the rest.

    kl, js: the student's rows against the teacher's, in nats. Then for teacher and student: entropy, in nats; distance,
    the mean distance in patches at which a patch looks at patches; and the share of attention that goes to the class
    token, to registers, and to the one token that gets most of it (the attention sink). `config` is the student's.
    """
    log_s = student_map.clamp_min(torch.finfo(student_map.dtype).tiny).log()
    found = {"kl": kl(teacher_map, log_s), "js": js(teacher_map, log_s)}
    places = torch.cartesian_prod(*[torch.arange(config.grid, device=student_map.device, dtype=student_map.dtype)] * 2)
    apart, first = torch.cdist(places, places), int(config.class_token)
    for side, m in ("teacher", teacher_map), ("student", student_map):
        patches = m[..., config.prefix :, config.prefix :]
        found[f"{side} entropy"] = -torch.xlogy(m, m).sum(-1)
        found[f"{side} distance"] = (patches * apart).sum(-1) / patches.sum(-1).clamp_min(torch.finfo(m.dtype).tiny)
        found[f"{side} class token"] = m[..., :first].sum(-1)
        found[f"{side} registers"] = m[..., first : config.prefix].sum(-1)
        found[f"{side} sink"] = m.mean(-2).amax(-1, keepdim=True)
    return {name: value.mean(dim=(0, 2)) for name, value in found.items()}
