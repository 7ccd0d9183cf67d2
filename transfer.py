"""Attention transfer: a teacher's routing moves to a student, and nothing else does.

Read this file after model.py, down to the end of `AttentionTransfer.forward`. It begins with the two methods of Li et
al. (arXiv 2411.09702), both defined over full maps. The rest is for reference: the same loss without a map, the
variants that both papers study, alignment, parts of weights, and measures.
"""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Attended, Drops, Handed, Routing, ViT, ViTConfig, attend, attention_logits, attention_map, layer_of
from support.errors import UserError, unknown

METHODS = ("copy", "distill")
WHAT = ("map", "q", "k", "v", "output")  # All can be distilled, all but output copied. v and output are not routing.


def copied(teacher: Routing, v: Tensor) -> Tensor:
    """Attention Copy by definition: reads the student's v (B, H, N, d) with the teacher's map.

    Only tests call it. A copying student reads with `attend(teacher, v)`, which gives the same without a map.
    """
    return attention_map(teacher) @ v  # (B, H, N, N) times (B, H, N, d)


def cross_entropy(p: Tensor, log_s: Tensor) -> Tensor:
    """Returns the cross-entropy of each row in nats, for the teacher's p and the student's log s: (..., N) to (...)."""
    return -(p * log_s).sum(-1)


def distillation_loss(teacher: Routing, student: Routing, row_loss: Callable = cross_entropy) -> Tensor:
    """Attention Distillation by definition: returns the loss between the rows of both maps, averaged over all rows."""
    p = attention_map(teacher)  # (B, H, N, N)
    log_s = attention_logits(student).log_softmax(-1)  # This is the logarithm of the student's map.
    return row_loss(p, log_s).mean()  # The mean is over images, heads and queries.


class AttentionTransfer(nn.Module):
    """A student that trains with a teacher's attention: images (B, 3, S, S) to (logits, transfer loss).

    With `method` "copy", the student reads with the teacher's maps, in training and after it, and the loss is 0. With
    "distill", the loss compares the maps, and only training needs the teacher. `blocks` chooses the blocks to transfer
    (see `choose_blocks`; None means all), and `what` is one of `WHAT`. `loss`, one of `LOSSES`, compares maps; q, k, v
    and output are compared by their mean squared error. If `fused` is True, the loss is computed without a map where
    `use_fused` allows it; if False, never; if None, where that is faster. Raises a `UserError` if teacher and student
    do not match (see `check_match`).
    """

    def __init__(
        self,
        student: ViT,
        teacher: ViT | None,
        method: str,
        blocks: str | int | Sequence[int] | None = None,
        what: str = "map",
        loss: str = "cross_entropy",
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        check_variant(method, what, loss)
        self.student, self.teacher = student, teacher
        self.method, self.what, self.row_loss, self.fused = method, what, LOSSES[loss], fused
        self.blocks = choose_blocks(blocks, student.config.depth)
        if teacher is not None:
            check_match(teacher.config, student.config)
            teacher.eval().requires_grad_(False)  # The teacher is frozen and stays in eval mode.
        elif method == "copy":
            raise UserError("method copy needs the teacher, in evaluation too; give AttentionTransfer one")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        no_loss = images.new_zeros(())
        if self.method == "distill" and not self.training:
            return self.student(images), no_loss  # After training, a distilled student needs no teacher.

        # The teacher looks. Stochastic depth drops the same layers in it as in the student, so the maps correspond.
        drops = self.student.draw_drops(images)
        theirs = self.teacher_targets(images, drops)  # {block: Routing}, or {block: Tensor} if `what` is not "map"

        # Attention Copy: the student reads with what the teacher hands over.
        if self.method == "copy":
            return self.student(images, handed=self.handed(theirs), drops=drops), no_loss

        # Attention Distillation: the student looks for itself, and the loss compares both models block by block.
        seen = []  # Each block of the student appends what its attention did.
        logits = self.student(images, drops=drops, seen=seen)
        losses = [self.block_loss(theirs[block], seen[block]) for block in self.blocks]
        return logits, torch.stack(losses).sum()  # arXiv 2411.09702 also sums over blocks.

    @torch.no_grad()
    def teacher_routings(self, images: Tensor, drops: Drops | None = None) -> dict[int, Routing]:
        """Returns the teacher's routing by block, for the student's tokens. The teacher runs no further than needed."""
        routings = self.teacher.route(images, self.blocks[-1] + 1, drops)
        configs = self.teacher.config, self.student.config
        return {block: align(routings[block], *configs) for block in self.blocks}

    def teacher_targets(self, images: Tensor, drops: Drops | None = None) -> dict:
        """Returns what the student copies or is compared with, by block: a routing, q, k, v or output (see `what`)."""
        # For map, q and k, the last block computes no v and no output.
        if self.what in ("map", "q", "k"):
            theirs = self.teacher_routings(images, drops)
            return theirs if self.what == "map" else {block: getattr(r, self.what) for block, r in theirs.items()}
        seen = []
        with torch.no_grad():
            self.teacher.forward_blocks(images, self.blocks[-1] + 1, drops=drops, seen=seen)
        configs = self.teacher.config, self.student.config
        return {block: drop_registers(getattr(seen[block], self.what), -2, *configs) for block in self.blocks}

    def handed(self, theirs: dict) -> dict[int, Handed]:
        """Returns what each block of a copying student is handed: the teacher's whole routing, or its q, k or v."""
        field = "routing" if self.what == "map" else self.what
        return {block: Handed(**{field: target}) for block, target in theirs.items()}

    def block_loss(self, target: Routing | Tensor, seen: Attended) -> Tensor:
        """Returns the loss of one block, from the teacher's target and what the student's attention did."""
        # bfloat16 has three digits, and the shares of a row are small. So the loss is in float32, also under autocast.
        with torch.autocast(seen.v.device.type, enabled=False):
            if self.what == "map":
                theirs, ours = in_float32(target), in_float32(seen.routing)
                if use_fused(ours, self.row_loss, self.fused):
                    return fused_cross_entropy(theirs, ours)
                return distillation_loss(theirs, ours, self.row_loss)
            ours = getattr(seen.routing if self.what in ("q", "k") else seen, self.what)
            return F.mse_loss(at_least_float32(ours), at_least_float32(target))

    def train(self, mode: bool = True) -> "AttentionTransfer":
        super().train(mode)  # This puts the teacher into training mode, too.
        if self.teacher is not None:
            self.teacher.eval()
        return self


class StudentAlone(nn.Module):
    """A student without a teacher. Like `AttentionTransfer`, it returns (logits, transfer loss), but the loss is 0."""

    def __init__(self, student: ViT) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(images), images.new_zeros(())


def at_least_float32(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dtype.itemsize >= 4 else x.float()


def in_float32(routing: Routing) -> Routing:
    return Routing(*map(at_least_float32, routing))


# ---- The loss without a map ------------------------------------------------------------------------------------------


def fused_cross_entropy(teacher: Routing, student: Routing) -> Tensor:
    """`distillation_loss` with the cross-entropy, in value and gradient, but no (N, N) map is ever held.

    Take one query q, with the teacher's row p and the student's logits s_j = q.k_j / sqrt(d). As the p_j sum to 1,

        cross-entropy = logsumexp(s) - sum_j p_j s_j = logsumexp(s) - q.(p K) / sqrt(d),

    where p K is attention: a row of the teacher's map, which reads the student's keys K in the place of v. Fast
    attention also returns the logsumexp, but without a gradient. The derivative of logsumexp(s) is softmax(s), the
    student's own row. So with respect to q and K the cross-entropy has the gradient of

        q.(softmax(s) K - p K) / sqrt(d), with the q and K inside softmax(s) held constant: attention once more.
    """
    q, k, _ = student  # `use_fused` has made sure that the student has no bias.
    scale = q.shape[-1] ** -0.5  # 1 / sqrt(d)
    read_by_teacher = attend(teacher, k)  # p K, (B, H, N, d)
    # The first two are detached, which holds softmax(s) constant: only the k that is read gets a gradient.
    read_by_student, logsumexp = attend_with_logsumexp(q.detach(), k.detach(), k)
    value = logsumexp.mean() - (q * read_by_teacher).sum(-1).mean() * scale
    surrogate = (q * (read_by_student - read_by_teacher)).sum(-1).mean() * scale
    # The result has the value of `value`. The bracket is 0, but it has the gradient of `surrogate`.
    return value.detach() + (surrogate - surrogate.detach())


def attend_with_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns attention (B, H, N, d) and its logits' logsumexp (B, H, N), by operators inside torch's attention."""
    if q.is_cuda:
        # CUDA has two such operators. This one takes float32, and pads its logsumexp to a multiple of 32 queries.
        out, logsumexp = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        return out, logsumexp[..., : q.shape[2]]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]


FUSED_FROM = 400  # From this many tokens on, the fused loss is faster on a CPU.


def use_fused(student: Routing, row_loss: Callable, fused: bool | None) -> bool:
    """Decides whether to compute the loss without a map: this must be possible, and faster or requested by `fused`."""
    device, tokens = student.q.device.type, student.q.shape[2]
    # Fused attention gives a bias no gradient.
    if row_loss is not cross_entropy or student.bias is not None or device not in ("cpu", "cuda"):
        return False
    is_faster = device == "cuda" or tokens >= FUSED_FROM
    return is_faster if fused is None else fused


# ---- Variants --------------------------------------------------------------------------------------------------------

# These losses take rows, as `cross_entropy` does. arXiv 2605.07191 rules out the loss as the reason for the failures.


def kl(p: Tensor, log_s: Tensor) -> Tensor:
    """Kullback-Leibler divergence: the cross-entropy minus the entropy of p, so it has the same gradient."""
    return (torch.xlogy(p, p) - p * log_s).sum(-1)


def mse(p: Tensor, log_s: Tensor) -> Tensor:
    """Squared error, summed over the row."""
    return (p - log_s.exp()).square().sum(-1)


def js(p: Tensor, log_s: Tensor) -> Tensor:
    """Jensen-Shannon divergence, from 0 to log 2: the mean divergence of the two rows from their mean."""
    s = log_s.exp()
    log_mean = ((p + s) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()  # There is no log of 0.
    return (kl(p, log_mean) + (s * (log_s - log_mean)).sum(-1)) / 2


def cosine(p: Tensor, log_s: Tensor) -> Tensor:
    """1 minus the cosine of the angle between the two rows, from 0 to 1 because shares are not negative."""
    return 1 - F.cosine_similarity(p, log_s.exp(), dim=-1)


LOSSES = {"cross_entropy": cross_entropy, "kl": kl, "mse": mse, "js": js, "cosine": cosine}


# ---- Alignment and checks --------------------------------------------------------------------------------------------


def align(routing: Routing, teacher: ViTConfig, student: ViTConfig) -> Routing:
    """Returns the teacher's routing for the tokens that the student has."""
    # Registers are dropped from k before the softmax, so the other tokens get their share of a row in proportion, and
    # the row still sums to 1. They are dropped from q, so the map has no rows for them.
    q, k, bias = routing
    if bias is not None:
        bias = drop_registers(drop_registers(bias, -1, teacher, student), -2, teacher, student)
    return Routing(drop_registers(q, -2, teacher, student), drop_registers(k, -2, teacher, student), bias)


def drop_registers(x: Tensor, dim: int, teacher: ViTConfig, student: ViTConfig) -> Tensor:
    """Drops the registers that only the teacher has from dimension `dim` of its tensor."""
    if teacher.registers == student.registers:
        return x
    class_token = x.narrow(dim, 0, int(teacher.class_token))
    patches = x.narrow(dim, teacher.prefix, x.shape[dim] - teacher.prefix)
    return torch.cat((class_token, patches), dim)


def check_match(teacher: ViTConfig, student: ViTConfig) -> None:
    """Raises a `UserError` unless the student can look where the teacher looks."""
    for field in ("grid", "depth", "heads", "dim", "class_token"):
        theirs, ours = getattr(teacher, field), getattr(student, field)
        if theirs != ours:
            raise UserError(f"the teacher's {field} is {theirs} and the student's {ours}; they must be the same")
    if student.registers not in (0, teacher.registers):
        raise UserError(
            f"the teacher has {teacher.registers} registers and the student {student.registers}; give the student none"
        )


def check_variant(method: str, what: str, loss: str) -> None:
    """Raises a `UserError` for an unknown word, or for words that cannot be combined."""
    for kind, word, choices in (("method", method, METHODS), ("what", what, WHAT), ("loss", loss, LOSSES)):
        if word not in choices:
            raise unknown(kind, word, choices)
    if method == "copy" and what == "output":
        raise UserError("output can be distilled, not copied; use method distill, or copy map, q, k or v")
    if what != "map" and loss != "cross_entropy":
        raise UserError(f"{what} is compared by its mean squared error; leave out loss, which is for maps")


def choose_blocks(blocks: str | int | Sequence[int] | None, depth: int) -> list[int]:
    """Returns the numbers of the chosen blocks, from 0 and in order. None chooses all.

    A number N (9 or "9") chooses the first N blocks, a range ("3-8") includes both of its ends, and a list ([0, 4, 8]
    or "0,4,8") names each block.
    """
    chosen = depth if blocks is None else blocks
    if isinstance(chosen, str | int):
        text = str(chosen)
        if not re.fullmatch(r"\d{1,4}(-\d{1,4}|(,\d{1,4})*,?)", text):
            raise UserError(f"blocks '{text}' is not a count (9), a range (3-8) or a list (0,4,8)")
        first, *rest = (int(number) for number in re.findall(r"\d+", text))
        if "-" in text:
            chosen = range(first, rest[0] + 1)
        else:
            chosen = [first, *rest] if "," in text else range(first)
    chosen = sorted(set(chosen))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise UserError(f"no such blocks: there are {depth}; choose a count from 1 to {depth}, or numbers from 0")
    return chosen


def name_blocks(blocks: str | int, depth: int) -> str:
    """Returns the same name for the same blocks, however they were written (see `choose_blocks`)."""
    chosen = choose_blocks(blocks, depth)
    first, last = chosen[0], chosen[-1]
    if len(chosen) <= last - first:  # Some blocks between the two are left out.
        return ",".join(map(str, chosen))
    return f"{first}-{last}" if first else f"{len(chosen)}"


# ---- Parts of the teacher's weights ----------------------------------------------------------------------------------

PARTS = ("attention", "mlp", "norms", "embeddings")


def part_of(name: str) -> str:
    """Returns which of `PARTS` a parameter belongs to by its name, or "head" if it comes after the last block."""
    if name.startswith("blocks."):
        module = name.split(".")[2]
        if module.startswith("norm"):
            return "norms"
        return "mlp" if module == "mlp" or module.endswith("2") else "attention"
    if layer_of(name, depth=0) == 1:
        return "head"
    if name.startswith("rel_pos_bias."):  # BEiT v2's table is shared by all blocks.
        return "attention"
    return "norms" if name.startswith("norm_pre.") else "embeddings"


def choose_parts(parts: str) -> list[str]:
    """Returns the chosen ones of `PARTS`, in their order. `parts` is "all" or a comma list."""
    words = PARTS if parts == "all" else [word.strip() for word in parts.split(",")]
    for word in words:
        if word not in PARTS:
            raise unknown("part", word, ("all", *PARTS))
    return [part for part in PARTS if part in words]


@torch.no_grad()
def init_from(student: ViT, teacher: ViT, parts: str) -> None:
    """Initialises parts of the student with the teacher's weights: "all", or a comma list of `PARTS`.

    "mlp,norms,embeddings" gives the pretrained model, but with random weights in attention (arXiv 2605.07191). "all" is
    the start of fine-tuning. The final norm and the head depend on the task, so the student keeps its own. Raises a
    `UserError` if these parts do not have tensors of the same names and shapes in both models.
    """
    chosen = choose_parts(parts)
    theirs, ours = (
        {name: value for name, value in model.state_dict().items() if part_of(name) in chosen}
        for model in (teacher, student)
    )
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = (tuple(held[name].shape) if name in held else "none" for held in (theirs, ours))
        if there != here:
            raise UserError(
                f"cannot initialise {part_of(name)} from the teacher: {name} is {there} there and {here} in the "
                f"student; give the student the teacher's components (--student native)"
            )
    for name, value in ours.items():
        value.copy_(theirs[name])


# ---- Measures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measures(teacher_map: Tensor, student_map: Tensor, config: ViTConfig) -> dict:
    """Returns how well two maps (B, H, N, N) of a block agree, and what each looks like: means over images and queries.

    "kl" and "js", (H,), compare the student's rows with the teacher's, in nats. All others are (2, H), for teacher and
    student: the "entropy" of the rows, in nats; the "distance", in patches, at which a patch looks at patches; and the
    shares that go to the "class token", to "registers", and to the "sink", the one token that gets most. `config` is
    the student's.
    """
    log_s = student_map.clamp_min(torch.finfo(student_map.dtype).tiny).log()
    maps, first = torch.stack((teacher_map, student_map)), int(config.class_token)
    patches = maps[..., config.prefix :, config.prefix :]  # (2, B, H, patches, patches)
    rows = torch.arange(config.grid, device=maps.device, dtype=maps.dtype)
    places = torch.cartesian_prod(rows, rows)  # (patches, 2): row, column
    apart = (patches * torch.cdist(places, places)).sum(-1)  # (2, B, H, patches)
    found = {
        "kl": kl(teacher_map, log_s),
        "js": js(teacher_map, log_s),
        "entropy": -torch.xlogy(maps, maps).sum(-1),
        "distance": apart / patches.sum(-1).clamp_min(torch.finfo(maps.dtype).tiny),
        "class token": maps[..., :first].sum(-1),
        "registers": maps[..., first : config.prefix].sum(-1),
        "sink": maps.mean(-2).amax(-1, keepdim=True),  # (2, B, H, 1): the largest mean share of a token
    }
    return {name: value.mean(dim=(-3, -1)) for name, value in found.items()}
