"""two routings, one map (20 min, 5 points)"""

import torch
from kit import Answer, Draw, Wrong, close, shown, worst
from torch import Tensor

from model import Routing, attention_logits, attention_map

RETURNS = {"same_map": lambda r, A, c: r}


def times_one(draw: Draw, *factors: float) -> Tensor:
    """Returns for each head a multiple of the identity matrix: (H, d, d)."""
    one = torch.eye(draw.d, dtype=draw.dtype)
    return torch.stack([factors[head % len(factors)] * one for head in range(draw.H)])


def invertible(draw: Draw) -> Tensor:
    """Returns a random matrix (H, d, d) for each head. It is not symmetric, and its inverse is not large."""
    first, second = (torch.linalg.qr(draw.numbers(draw.H, draw.d, draw.d))[0] for _ in range(2))
    return first * (0.5 + draw.uniform(draw.H, 1, draw.d)) @ second


def keys_are_shifted(answer: Answer, draw: Draw) -> None:
    """with A = 1 the keys become k + c, head by head"""
    r, c = draw.square().routing(), draw.numbers(draw.H, draw.d)
    asked = torch.stack([r.k[:, head] + c[head] for head in range(draw.H)], dim=1)
    found = answer.same_map(r, times_one(draw, 1), c).k
    if close(found, r.k + c):
        raise Wrong(
            f"With {draw.H} tokens and {draw.H} heads, c was added token by token: k + c aligns the last two "
            f"dimensions, which are (N, d) in k and (H, d) in c. All tokens of head 0 should get c[0] = {shown(c[0])}."
        )
    if not close(found, asked):
        b, h, n, _ = worst(found, asked)
        raise Wrong(
            f"A is the identity matrix, and the key of token {n} in head {h} became {shown(found[b, h, n])}, but k + c "
            f"is {shown(asked[b, h, n])} there."
        )


def keys_are_transformed(answer: Answer, draw: Draw) -> None:
    """the keys become (k + c) A"""
    r, A, c = draw.routing(), invertible(draw), draw.numbers(draw.H, draw.d)
    asked = torch.stack([(r.k[:, head] + c[head]) @ A[head] for head in range(draw.H)], dim=1)
    found = answer.same_map(r, A, c).k
    if close(found, asked):
        return
    b, h, n, _ = worst(found, asked)
    key = f"The key of token {n} in head {h} became {shown(found[b, h, n])}, but (k + c) A is {shown(asked[b, h, n])}."
    if close(found, r.k @ A + c[:, None]):
        raise Wrong(f"{key} Yours is k A + c: the shift comes first, so that A acts on it, too.")
    if close(found, (r.k + c[:, None]) @ A.mT):
        raise Wrong(f"{key} Yours has A transposed: a key is a row, so multiply it by A from the right.")
    raise Wrong(key)


def bias_is_kept(answer: Answer, draw: Draw) -> None:
    """the bias is kept"""
    for r in (draw.routing(), draw.routing(bias=True)):
        found = answer.same_map(r, times_one(draw, 1), draw.numbers(draw.H, draw.d)).bias
        if r.bias is not None and not close(found, r.bias):
            h, i, j = worst(found, r.bias)
            raise Wrong(
                f"The bias at head {h}, query {i}, key {j} was {shown(r.bias[h, i, j])} and is now "
                f"{shown(found[h, i, j])}. It is added after q and k are multiplied, so what happens to them does not "
                "affect it."
            )


def moved(r: Routing, found: Routing) -> tuple[tuple[int, ...], str] | None:
    """Returns where the map changed most, and how in words, or None if it did not change."""
    before, after = attention_map(r), attention_map(found)
    if close(after, before):
        return None
    place = _, _, i, j = worst(after, before)
    return place, f"token {i} gave token {j} a share of {shown(before[place])}, and now gives it {shown(after[place])}"


def shift_leaves_map(answer: Answer, draw: Draw) -> None:
    """with A = 1 the map is unchanged, whatever c is"""
    r, c = draw.routing(bias=True), draw.numbers(draw.H, draw.d)
    if change := moved(r, answer.same_map(r, times_one(draw, 1), c)):
        (_, h, _, _), words = change
        raise Wrong(
            f"A is the identity matrix and c is {shown(c[h])} in head {h}: {words}. A shift of k adds q.c to all "
            "logits of a row, which softmax ignores; a shift of q adds something else to each logit. What is left to "
            "do to q here?"
        )


def doubling_leaves_map(answer: Answer, draw: Draw) -> None:
    """with A = 2 the map is unchanged"""
    r = draw.routing()
    found = answer.same_map(r, times_one(draw, 2), draw.numbers(draw.H, draw.d) * 0)
    if change := moved(r, found):
        place, words = change
        times = shown(attention_logits(found)[place] / attention_logits(r)[place])
        raise Wrong(
            f"With A = 2, twice the identity matrix, and c = 0, {words}. Its logit is {times} times what it was. Every "
            "key is twice as long now: which matrix undoes A on q's side?"
        )


def heads_have_their_own(answer: Answer, draw: Draw) -> None:
    """each head's A is undone in that head"""
    r, factors = draw.square().routing(), [2.0 + head for head in range(draw.H)]
    if change := moved(r, answer.same_map(r, times_one(draw, *factors), draw.numbers(draw.H, draw.d) * 0)):
        (_, h, _, _), words = change
        raise Wrong(
            f"A is 2 times the identity matrix in head 0, 3 times in head 1, and so on. In head {h} {words}. Each head "
            "has its own routing: which A did you undo in its q?"
        )


def axes_leave_map(answer: Answer, draw: Draw) -> None:
    """with an A that stretches each feature by its own factor, the map is unchanged"""
    r, factors = draw.routing(), 0.5 + draw.uniform(draw.H, draw.d)
    if change := moved(r, answer.same_map(r, torch.diag_embed(factors), draw.numbers(draw.H, draw.d))):
        (_, h, _, _), words = change
        raise Wrong(
            f"A is diagonal, in head {h} with {shown(factors[h])}: {words}. Feature 0 of every key is now "
            f"{shown(factors[h, 0])} times as large, and feature 1 {shown(factors[h, 1])} times: one number for a "
            "whole head cannot undo that."
        )


def any_matrix_leaves_map(answer: Answer, draw: Draw) -> None:
    """with any invertible A and any c the map is unchanged"""
    r, A = draw.routing(bias=True), invertible(draw)
    if change := moved(r, answer.same_map(r, A, draw.numbers(draw.H, draw.d))):
        (_, h, _, _), words = change
        raise Wrong(
            f"In head {h} A is {shown(A[h])}: {words}. In the earlier laws about the map A was symmetric, and here it "
            "is not: q k^T contains A transposed, as (k A)^T = A^T k^T."
        )


keys_are_transformed.needs = shift_leaves_map.needs = bias_is_kept.needs = [keys_are_shifted]
doubling_leaves_map.needs = [shift_leaves_map]
heads_have_their_own.needs = [doubling_leaves_map]
axes_leave_map.needs = [heads_have_their_own]
any_matrix_leaves_map.needs = [axes_leave_map]

LAWS = [
    keys_are_shifted,
    keys_are_transformed,
    bias_is_kept,
    shift_leaves_map,
    doubling_leaves_map,
    heads_have_their_own,
    axes_leave_map,
    any_matrix_leaves_map,
]

HINTS = [
    "Write the new logits as q' ((k + c) A)^T and multiply it out. Which term is the same for all keys of a row?",
    "What is left is q' A^T k^T, and should be q k^T. So q' = q M, where M A^T is the identity matrix. Which M is "
    "that?",
    "torch.linalg.inv and .mT work on (H, d, d), head by head. Make c (H, d) into (H, 1, d) before you add it to k.",
]
