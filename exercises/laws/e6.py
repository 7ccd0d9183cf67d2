"""a gate for every head (3 h, 15 points)"""

import torch
from kit import Answer, Draw, Wrong, close, false_slope, shown, worst
from torch import Tensor

from model import Routing, attend

RETURNS = {
    "gated_read": lambda theirs, own, v, gate: v,
    "open_gates": lambda raw: raw,
}


def cube(draw: Draw, bias: bool = False) -> tuple[Routing, Routing, Tensor]:
    """Returns two routings and v with B = H = N = d: every way to broadcast a gate runs, but only one is right."""
    n = draw.H
    theirs, own = (draw.routing(n, n, n, n, bias=bias) for _ in range(2))
    return theirs, own, draw.numbers(n, n, n, n)


def place(index: tuple[int, ...]) -> str:
    return "image {}, head {}, token {}, feature {}".format(*index)


# ---- gated_read ------------------------------------------------------------------------------------------------------


def one_copies(answer: Answer, draw: Draw) -> None:
    """gated_read: with a gate of 1 every head reads with the teacher's map"""
    theirs, own, v = cube(draw)
    read, copied, alone = (
        answer.gated_read(theirs, own, v, torch.ones_like(v[0, :, 0, 0])),
        attend(theirs, v),
        attend(own, v),
    )
    if close(read, alone):
        raise Wrong(
            "All gates are 1, but every head reads with its own map, as if all were 0. A gate of 1 lets the teacher "
            "in: which of the two maps do you multiply by the gate?"
        )
    if not close(read, copied):
        i = worst(read, copied)
        raise Wrong(
            f"All gates are 1. At {place(i)}, the teacher's map reads {shown(copied[i])}, the head's own "
            f"{shown(alone[i])}; you read {shown(read[i])}. A gate of 1 copies: nothing of the head's own map is left. "
            "(Gates arrive here as numbers from 0 to 1; use them as they are.)"
        )


def zero_is_own(answer: Answer, draw: Draw) -> None:
    """gated_read: with a gate of 0 every head reads with its own map"""
    theirs, own, v = cube(draw)
    read, alone = answer.gated_read(theirs, own, v, torch.zeros_like(v[0, :, 0, 0])), attend(own, v)
    if not close(read, alone):
        i = worst(read, alone)
        raise Wrong(
            f"All gates are 0. At {place(i)}, the head's own map reads {shown(alone[i])}, the teacher's "
            f"{shown(attend(theirs, v)[i])}; you read {shown(read[i])}. With a gate of 0 the teacher has no influence, "
            "and the student is a baseline."
        )


def biases(answer: Answer, draw: Draw) -> None:
    """gated_read: each routing is used with its own bias"""
    theirs, own, v = cube(draw, bias=True)
    for gate, routing, whose in ((1.0, theirs, "teacher's"), (0.0, own, "head's own")):
        read, expected = answer.gated_read(theirs, own, v, torch.full_like(v[0, :, 0, 0], gate)), attend(routing, v)
        if not close(read, expected):
            i = worst(read, expected)
            raise Wrong(
                f"Both routings have a bias and all gates are {gate:g}. At {place(i)}, you read {shown(read[i])}; the "
                f"{whose} map, bias included, reads {shown(expected[i])} (without it "
                f"{shown(attend(routing._replace(bias=None), v)[i])}). A routing is q, k and bias."
            )


def head_by_head(answer: Answer, draw: Draw) -> None:
    """gated_read: each gate belongs to one head, also if there are as many tokens, images or features as heads"""
    theirs, own, v = cube(draw)
    gate = torch.zeros_like(v[0, :, 0, 0])
    gate[0] = 1  # The first head copies.
    read, copied, alone = answer.gated_read(theirs, own, v, gate), attend(theirs, v), attend(own, v)
    expected = torch.cat((copied[:, :1], alone[:, 1:]), 1)
    if close(read, expected):
        return
    n = len(gate)
    chosen = {"image": 0, "token": 2, "feature": 3}
    for word, dim in chosen.items():
        there = torch.cat((copied.narrow(dim, 0, 1), alone.narrow(dim, 1, n - 1)), dim)
        if close(read, there):
            raise Wrong(
                f"{n} heads, {n} images, {n} tokens, {n} features; the gate of head 0 is 1, all others are 0. What is "
                f"copied is not head 0 but {word} 0 of every head. Broadcasting aligns a gate (H,) with (B, H, N, d) "
                "from the right: how many dimensions must follow it?"
            )
    head = worst(read, expected)[1]
    raise Wrong(
        "The gate of head 0 is 1, all others are 0. Head 0 should read with the teacher's map and the others with "
        f"their own; head {head} does not. Does each head have its own gate?"
    )


def half(answer: Answer, draw: Draw) -> None:
    """gated_read: a map half one-hot and half uniform over four tokens reads 0.625"""
    zeros = torch.zeros(1, 1, 4, 1, dtype=draw.dtype)
    v = zeros.clone()
    v[0, 0, 2] = 1  # Token 2 has something to give.
    sure, unsure = Routing(zeros + 1, 1000 * v), Routing(zeros, zeros)
    read = answer.gated_read(sure, unsure, v, zeros.new_full((1,), 0.5))
    if not close(read, zeros + 0.625):
        raise Wrong(
            "Of four tokens only token 2 has a v of 1. The teacher looks at it alone and reads 1, the head looks "
            f"everywhere and reads 0.25; half of each is 0.625, but you read {shown(read[0, 0, 0, 0])}. What is mixed "
            "before the softmax (q, k or logits) multiplies maps: a sharp map outvotes a flat one, whatever the gate. "
            "Mix shares."
        )


def one_bias(answer: Answer, draw: Draw) -> None:
    """gated_read: one routing may have a bias and the other none"""
    theirs, own, v = cube(draw, bias=True)
    half_open = torch.full_like(v[0, :, 0, 0], 0.5)
    for one, other in ((theirs, own._replace(bias=None)), (theirs._replace(bias=None), own)):
        read, expected = answer.gated_read(one, other, v, half_open), (attend(one, v) + attend(other, v)) / 2
        if not close(read, expected):
            i = worst(read, expected)
            raise Wrong(
                f"Only {'the teacher has' if one.bias is not None else 'the head itself has'} a bias, as BEiT has and "
                f"a standard student has not; all gates are 0.5. At {place(i)}, you read {shown(read[i])} instead of "
                f"{shown(expected[i])}. Look at each routing's own bias."
            )


def straight(answer: Answer, draw: Draw) -> None:
    """gated_read: a gate halfway between two others reads halfway between what they read"""
    theirs, own, v = draw.routing(), draw.routing(), draw.numbers(draw.B, draw.H, draw.N, draw.d)
    low, high = draw.uniform(2, draw.H)
    first, last = answer.gated_read(theirs, own, v, low), answer.gated_read(theirs, own, v, high)
    between, expected = answer.gated_read(theirs, own, v, (low + high) / 2), (first + last) / 2
    if not close(between, expected):
        b, h, i, c = worst(between, expected)
        raise Wrong(
            f"Head {h}: gates of {shown(low[h])} and {shown(high[h])} read {shown(first[b, h, i, c])} and "
            f"{shown(last[b, h, i, c])}. A gate of {shown((low + high)[h] / 2)} is halfway, and should read "
            f"{shown(expected[b, h, i, c])}; you read {shown(between[b, h, i, c])}. A gate is a share: what is read "
            "must be linear in it, or its value means nothing."
        )


def gradients(answer: Answer, draw: Draw) -> None:
    """gated_read: the gates, v and the head's own q, k and bias get their full gradients, and the teacher gets none"""
    theirs, own = draw.routing(bias=True), draw.routing(bias=True)
    v, gate = draw.numbers(draw.B, draw.H, draw.N, draw.d), draw.uniform(draw.H)
    target = draw.numbers(draw.B, draw.H, draw.N, draw.d)
    learnt = {"gate": gate, "v": v, "own.q": own.q, "own.k": own.k, "own.bias": own.bias}
    for x in (*learnt.values(), *theirs):
        x.requires_grad_()

    def total(at: dict[str, Tensor]) -> Tensor:
        routing = Routing(at["own.q"], at["own.k"], at["own.bias"])
        return (answer.gated_read(theirs, routing, at["v"], at["gate"]) * target).sum()

    found, number = [None] * (len(learnt) + 3), total(learnt)
    if number.requires_grad:
        found = torch.autograd.grad(number, (*learnt.values(), *theirs), allow_unused=True)
    for name, gradient in zip(learnt, found[: len(learnt)], strict=True):
        if gradient is None or not gradient.count_nonzero():
            raise Wrong(
                f"{name} affects what is read, but gets no gradient: it would stay as it is at the start. Is it turned "
                "into a plain number (.item(), float), detached, or used under no_grad?"
            )
    if any(gradient is not None and gradient.count_nonzero() for gradient in found[len(learnt) :]):
        raise Wrong(
            "The teacher's q, k or bias gets a gradient, but the teacher must not learn: detach q, k and, if there is "
            "one, the bias, before you read with them. (Do not detach what is read: v gets a gradient through it.)"
        )

    if wrong := false_slope(total, learnt, draw):
        name, slope, expected = wrong
        why = {
            "gate": "A gate weights two reads, and both of them add to its gradient.",
            "v": "Both maps read v, and v gets a gradient through both. If the teacher's read is under no_grad, or "
            "detached after v has been read, half of it is missing: detach only the teacher's q, k and bias.",
        }
        raise Wrong(
            f"If what is read is multiplied by random numbers and summed, the sum has a slope of {shown(expected)} in "
            f"a random direction of {name}, but the gradient of {name} gives {shown(slope)}. "
            f"{why.get(name, 'Is a part of it detached?')}"
        )


zero_is_own.needs = [one_copies]
biases.needs = head_by_head.needs = half.needs = [one_copies, zero_is_own]
one_bias.needs = [biases, half]
straight.needs = gradients.needs = [head_by_head, half]


# ---- open_gates ------------------------------------------------------------------------------------------------------


def half_open(answer: Answer, draw: Draw) -> None:
    """open_gates: at 0 a gate is half open, far below it is closed, far above it is open"""
    raw = torch.tensor([-1e4, -1000.0, 0.0, 1000.0, 1e4], dtype=draw.dtype)
    gate = answer.open_gates(raw)
    said = f"raw is {shown(raw)} and your gates are {shown(gate)}"
    if not close(gate[2], gate[2] * 0 + 0.5):
        raise Wrong(
            f"{said}; the middle one should be 0.5. At the start a head has no reason to follow the teacher or not."
        )
    if gate.min() < 0 or gate.max() > 1:
        raise Wrong(
            f"{said}, which are not all from 0 to 1. An optimiser knows no bounds. With a gate of 3 a head would read "
            "three times the teacher minus twice its own, which is no longer a mixture."
        )
    if not close(gate, torch.tensor([0, 0, 0.5, 1, 1], dtype=draw.dtype), 0.01):
        raise Wrong(
            f"{said}; far below 0 a gate should be 0 (closed), and far above it 1 (open), each to within 0.01. Yours "
            "never closes or opens fully, so it cannot leave the teacher out or take it whole."
        )


def apart(answer: Answer, draw: Draw) -> None:
    """open_gates: each gate depends only on its own number"""
    raw = draw.numbers(draw.H)
    other = raw.clone()
    other[0] += 1
    before, after = answer.open_gates(raw), answer.open_gates(other)
    if not close(before[1:], after[1:]):
        raise Wrong(
            f"raw of head 0 rose by 1, and the gates went from {shown(before)} to {shown(after)}: others moved, too. "
            "Heads do not compete for the teacher: all of them may follow it, or none."
        )


def never_stuck(answer: Answer, draw: Draw) -> None:
    """open_gates: a gate rises with its number, and can come back from both ends"""
    raw = torch.tensor([-15.0, -6.0, -1.0, 0.0, 1.0, 6.0, 15.0], dtype=draw.dtype)
    gate = answer.open_gates(raw)
    if not (gate.diff() > 0).all():
        raise Wrong(
            f"For raw = {shown(raw)} your gates are {shown(gate)}, which do not always rise. Where a gate is flat "
            "it has no gradient: one that an early step pushed there never comes back."
        )
    raw.requires_grad_()
    gate = answer.open_gates(raw)
    slopes = torch.autograd.grad(gate.sum(), raw)[0] if gate.requires_grad else torch.zeros_like(raw)
    if not (slopes > 0).all():
        raise Wrong(
            f"For raw = {shown(raw.detach())} the slopes of your gates are {shown(slopes)}, which should all be above "
            "0. A gate without a slope is a constant, not a parameter."
        )
    for dtype in (torch.float32, torch.float64):
        far = torch.tensor([-1000.0, -100.0, 100.0, 1000.0], dtype=dtype, requires_grad=True)
        slopes = torch.autograd.grad(answer.open_gates(far).sum(), far)[0]
        if not slopes.isfinite().all():
            raise Wrong(
                f"For raw = {shown(far.detach())} in {dtype} the slopes of your gates are {shown(slopes)}. One that is "
                "not finite spoils all weights in one step. exp of a large number is infinite: use torch's functions."
            )


apart.needs = never_stuck.needs = [half_open]

LAWS = [
    one_copies,
    zero_is_own,
    biases,
    head_by_head,
    half,
    one_bias,
    straight,
    gradients,
    half_open,
    apart,
    never_stuck,
]
HINTS = [
    "Reading is linear in the map: a map that is half of one and half of another reads half of what each of them "
    "reads.",
    "gated_read: call attend twice. Give the gate two more dimensions, (H, 1, 1), before you multiply it with (B, H, "
    "N, d). Detach q, k and bias of theirs (bias may be None) before attend, not what attend returns: v learns from "
    "that. open_gates: which function maps all numbers to between 0 and 1?",
    "gate * (what the teacher's map reads) + (1 - gate) * (what its own map reads). The logistic function, "
    "Tensor.sigmoid, is 0.5 at 0 and nowhere flat.",
]
