"""rollout with a share kept (1 h, 8 points)"""

import torch
from kit import Answer, Draw, Wrong, close, shown, worst
from torch import Tensor

RETURNS = {"rollout": lambda maps, keep: maps[0][:, 0]}


def shares(draw: Draw, *values: float) -> Tensor:
    return torch.tensor(values, dtype=draw.dtype)


def rows_are_shares(answer: Answer, draw: Draw) -> None:
    """the rows sum to 1"""
    maps = draw.maps(2)
    keep = draw.uniform(2)
    made_of = answer.rollout(maps, keep)
    found, by_column = made_of.sum(-1), made_of.sum(-2)
    if not close(found, found * 0 + 1):
        b, i = worst(found, found * 0 + 1)
        if close(by_column, by_column * 0 + 1):
            raise Wrong(
                f"Two blocks, keep {shown(keep)}: the row of token {i} sums to {shown(found[b, i])}, but every column "
                f"sums to 1: yours is transposed. Row i says what token i is made of, as row i of a map says where "
                f"token i looks."
            )
        raise Wrong(
            f"Two blocks, keep {shown(keep)}: the row of token {i} sums to {shown(found[b, i])}. After each block a "
            f"token is made of shares of tokens, which sum to 1: what it keeps and what it reads must do so together, "
            f"and a token's heads count as their mean."
        )


def images_are_apart(answer: Answer, draw: Draw) -> None:
    """an image does not depend on the others"""
    maps, keep = draw.maps(2, B=draw.B + 1), draw.uniform(2)
    found, expected = answer.rollout(maps, keep)[1:], answer.rollout([one[1:] for one in maps], keep)
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Without image 0, token {i} of image {b + 1} is made of token {j} by {shown(expected[b, i, j])}, and with "
            f"it by {shown(found[b, i, j])}. Means are over heads, and products within an image."
        )


def all_kept(answer: Answer, draw: Draw) -> None:
    """with keep 1 every token is itself, and with keep 0 one block is the mean of its heads"""
    maps = draw.maps()
    itself = torch.eye(draw.N, dtype=draw.dtype).expand(draw.B, -1, -1)
    read = torch.stack([maps[0][:, head] for head in range(draw.H)]).mean(0)
    kept, not_kept = answer.rollout(maps, shares(draw, 1.0)), answer.rollout(maps, shares(draw, 0.0))
    if close(kept, read) and close(not_kept, itself):
        raise Wrong(
            f"One block, keep 1: token 0 should be made of itself alone, {shown(itself[0, 0])}, and is "
            f"{shown(kept[0, 0])}, what the heads read. keep is the share of itself that a token keeps: you have it "
            f"the wrong way round."
        )
    if close(kept, not_kept):
        raise Wrong(
            f"One block: with keep 1 token 0 is made of {shown(kept[0, 0])}, and with keep 0 of the same. With keep 1 "
            f"it should be itself alone, {shown(itself[0, 0])}, and with keep 0 what its heads read, "
            f"{shown(read[0, 0])}. Yours does not depend on keep: where does it enter?"
        )
    for found, expected, share, what in (
        (kept, itself, 1, "itself alone"),
        (not_kept, read, 0, "what its heads read on average"),
    ):
        if not close(found, expected):
            b, i, _ = worst(found, expected)
            raise Wrong(
                f"One block, keep {share}: token {i} should be made of {what}, {shown(expected[b, i])}, and is "
                f"{shown(found[b, i])}. {reason(found, expected)}"
            )


def reason(found: Tensor, expected: Tensor) -> str:
    """What may be wrong with a rollout whose rows sum to 1."""
    if close(found, (expected.mT / expected.mT.sum(-1, keepdim=True))):
        return "Yours is the mean map transposed, and made to sum to 1 again. Row i says where token i looks."
    return (
        "Of one block there is nothing else to mix: a share keep of the token, and the rest of the mean of its heads."
    )


def share_is_straight(answer: Answer, draw: Draw) -> None:
    """of one block, keep 1/4 lies a quarter of the way from keep 0 to keep 1"""
    maps = draw.maps()
    nothing, quarter, everything = [answer.rollout(maps, shares(draw, value)) for value in (0.0, 0.25, 1.0)]
    expected = nothing + (everything - nothing) / 4
    if not close(quarter, expected):
        b, i, j = worst(quarter, expected)
        raise Wrong(
            f"One block: token {i} is made of token {j} by {shown(nothing[b, i, j])} with keep 0, by "
            f"{shown(everything[b, i, j])} with keep 1, and by {shown(quarter[b, i, j])} with keep 0.25, where "
            f"{shown(expected[b, i, j])} lies on the straight line. A share kept is mixed with the rest by that share."
        )


def later_blocks_read_earlier_ones(answer: Answer, draw: Draw) -> None:
    """a token reads what another one has become in the block before"""
    first, second, third = torch.randperm(draw.N, generator=draw.generator)[:3].tolist()
    maps = torch.eye(draw.N, dtype=draw.dtype).repeat(2, draw.B, draw.H, 1, 1)
    itself = torch.eye(draw.N, dtype=draw.dtype)
    maps[0, :, :, second] = itself[first]  # block 0: the second reads the first
    maps[1, :, :, third] = itself[second]  # block 1: the third reads the second
    row = answer.rollout(list(maps), shares(draw, 0.0, 0.0))[0, third]
    if not close(row[first], row[first] * 0 + 1):
        raise Wrong(
            f"In block 0 token {second} reads token {first}, and all others read themselves. In block 1 token {third} "
            f"reads token {second}. Token {third} should end as token {first}, which is what {second} has become by "
            f"then; yours is made of {first} by {shown(row[first])} and of {second} by {shown(row[second])}. Which of "
            f"the two matrices stands on the right, next to the tokens that come in?"
        )


def each_block_keeps_its_own(answer: Answer, draw: Draw) -> None:
    """each block keeps its own share, so a block that keeps all can be left out"""
    maps = draw.maps(2, N=2)  # as many blocks as tokens
    found, expected = answer.rollout(maps, shares(draw, 1.0, 0.0)), answer.rollout(maps[1:], shares(draw, 0.0))
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Two blocks of two tokens, keep [1, 0]: token {i} is made of token {j} by {shown(found[b, i, j])}. Block "
            f"0 keeps everything, and block 1 alone, with keep 0, gives {shown(expected[b, i, j])}. keep[l] belongs to "
            f"block l, to all of its tokens and to nothing else."
        )


def kept_is_what_it_became(answer: Answer, draw: Draw) -> None:
    """what a token keeps is what it has become by then"""
    maps = draw.maps(2)
    found, expected = answer.rollout(maps, shares(draw, 0.0, 1.0)), answer.rollout(maps[:1], shares(draw, 0.0))
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Block 0 keeps nothing, and block 1 keeps everything, so what block 0 made should stay: token {i} is made "
            f"of token {j} by {shown(expected[b, i, j])}, and yours says {shown(found[b, i, j])}. Block 1 knows "
            f"nothing of the tokens that once came in: what it keeps is what block 0 hands to it."
        )


def mean_over_heads_counts(answer: Answer, draw: Draw) -> None:
    """only the mean over heads counts, in every block"""
    maps, keep = draw.maps(2), draw.uniform(2)
    averaged = [torch.zeros_like(one) + one.mean(1, keepdim=True) for one in maps]
    found, expected = answer.rollout(maps, keep), answer.rollout(averaged, keep)
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Two blocks: if every head is given the mean of the {draw.H} heads of its block, token {i} is made of "
            f"token {j} by {shown(expected[b, i, j])} instead of {shown(found[b, i, j])}. A head of block 1 reads "
            f"tokens, to which all heads of block 0 have added: what head 0 found is not for head 0 alone."
        )


def parts_compose(answer: Answer, draw: Draw) -> None:
    """the rollout of all blocks is that of the last ones times that of the first ones"""
    depth = draw.level + 2
    maps, keep, cut = draw.maps(depth), draw.uniform(depth), draw.integer(1, depth)
    found = answer.rollout(maps, keep)
    expected = answer.rollout(maps[cut:], keep[cut:]) @ answer.rollout(maps[:cut], keep[:cut])
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"{depth} blocks, keep {shown(keep)}: token {i} is made of token {j} by {shown(found[b, i, j])}. The last "
            f"{depth - cut} blocks, applied to what the first {cut} give, make it {shown(expected[b, i, j])}. Every "
            f"block does the same to whatever comes in: which of yours is treated in another way?"
        )


all_kept.needs = [rows_are_shares, images_are_apart]
share_is_straight.needs = later_blocks_read_earlier_ones.needs = [all_kept]
each_block_keeps_its_own.needs = [all_kept]
kept_is_what_it_became.needs = [each_block_keeps_its_own]
mean_over_heads_counts.needs = [later_blocks_read_earlier_ones]
parts_compose.needs = [kept_is_what_it_became, mean_over_heads_counts]

LAWS = [
    rows_are_shares,
    images_are_apart,
    all_kept,
    share_is_straight,
    later_blocks_read_earlier_ones,
    each_block_keeps_its_own,
    kept_is_what_it_became,
    mean_over_heads_counts,
    parts_compose,
]

HINTS = [
    "One block multiplies tokens (N, d) by a matrix (N, N). What is it, from keep and the mean of the heads?",
    "A row of it is keep times the unit row plus (1 - keep) times the mean map's row, so it sums to 1 as both do.",
    "Begin with the unit matrix (B, N, N), and let each block multiply it from the left, block 0 first.",
]
