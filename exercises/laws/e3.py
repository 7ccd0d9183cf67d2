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
                "sums to 1: yours is transposed. Row i says what token i is made of, as row i of a map says where "
                "token i looks."
            )
        raise Wrong(
            f"Two blocks, keep {shown(keep)}: the row of token {i} sums to {shown(found[b, i])}. After each block, a "
            "token is made of shares of tokens, which sum to 1. So what it keeps and what it reads must sum to 1 "
            "together, and its heads count as their mean."
        )


def images_are_apart(answer: Answer, draw: Draw) -> None:
    """images do not depend on each other"""
    maps, keep = draw.maps(2, B=draw.B + 1), draw.uniform(2)
    found, expected = answer.rollout(maps, keep)[1:], answer.rollout([one[1:] for one in maps], keep)
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"In token {i} of image {b + 1}, the share of token {j} is {shown(expected[b, i, j])} without image 0, and "
            f"{shown(found[b, i, j])} with it. Take means over heads, and products within an image."
        )


def all_kept(answer: Answer, draw: Draw) -> None:
    """with keep 1 every token stays itself, and with keep 0 one block gives the mean of its heads"""
    maps = draw.maps()
    itself = torch.eye(draw.N, dtype=draw.dtype).expand(draw.B, -1, -1)
    read = torch.stack([maps[0][:, head] for head in range(draw.H)]).mean(0)
    kept, not_kept = answer.rollout(maps, shares(draw, 1.0)), answer.rollout(maps, shares(draw, 0.0))
    if close(kept, read) and close(not_kept, itself):
        raise Wrong(
            f"One block, keep 1: token 0 should be made of itself alone, {shown(itself[0, 0])}, but is "
            f"{shown(kept[0, 0])}, which is what the heads read. keep is the share of itself that a token keeps: you "
            "have it the wrong way round."
        )
    if close(kept, not_kept):
        raise Wrong(
            f"One block: token 0 is made of {shown(kept[0, 0])} with keep 1, and also with keep 0. With keep 1 it "
            f"should be itself alone, {shown(itself[0, 0])}, and with keep 0 what its heads read, {shown(read[0, 0])}. "
            "Yours does not depend on keep: where does it enter?"
        )
    for found, expected, share, what in (
        (kept, itself, 1, "itself alone"),
        (not_kept, read, 0, "what its heads read on average"),
    ):
        if not close(found, expected):
            b, i, _ = worst(found, expected)
            raise Wrong(
                f"One block, keep {share}: token {i} should be made of {what}, {shown(expected[b, i])}, but is "
                f"{shown(found[b, i])}. {reason(found, expected)}"
            )


def reason(found: Tensor, expected: Tensor) -> str:
    """Returns what may be wrong with a rollout whose rows sum to 1."""
    if close(found, (expected.mT / expected.mT.sum(-1, keepdim=True))):
        return "Yours is the mean map, transposed and then normalised to sum to 1. Row i says where token i looks."
    return (
        "In one block there is nothing else to mix: a share keep of the token, and for the rest the mean of its heads."
    )


def share_is_straight(answer: Answer, draw: Draw) -> None:
    """for one block, keep 1/4 lies a quarter of the way from keep 0 to keep 1"""
    maps = draw.maps()
    nothing, quarter, everything = [answer.rollout(maps, shares(draw, value)) for value in (0.0, 0.25, 1.0)]
    expected = nothing + (everything - nothing) / 4
    if not close(quarter, expected):
        b, i, j = worst(quarter, expected)
        raise Wrong(
            f"One block: in token {i}, the share of token {j} is {shown(nothing[b, i, j])} with keep 0, "
            f"{shown(everything[b, i, j])} with keep 1, and {shown(quarter[b, i, j])} with keep 0.25, where the "
            f"straight line has {shown(expected[b, i, j])}. The token and what it reads are mixed in proportion, keep "
            "to 1 - keep."
        )


def later_blocks_read_earlier_ones(answer: Answer, draw: Draw) -> None:
    """a token reads what another one has become in the block before"""
    first, second, third = torch.randperm(draw.N, generator=draw.generator)[:3].tolist()
    maps = torch.eye(draw.N, dtype=draw.dtype).repeat(2, draw.B, draw.H, 1, 1)
    itself = torch.eye(draw.N, dtype=draw.dtype)
    maps[0, :, :, second] = itself[first]  # In block 0, the second reads the first.
    maps[1, :, :, third] = itself[second]  # In block 1, the third reads the second.
    row = answer.rollout(list(maps), shares(draw, 0.0, 0.0))[0, third]
    if not close(row[first], row[first] * 0 + 1):
        raise Wrong(
            f"In block 0 token {second} reads token {first}, and all others read themselves. In block 1 token {third} "
            f"reads token {second}. Token {third} should end as token {first}, which is what token {second} has become "
            f"by then. In yours, token {first} has a share of {shown(row[first])} and token {second} of "
            f"{shown(row[second])}. Which of the two matrices stands on the right, next to the incoming tokens?"
        )


def each_block_keeps_its_own(answer: Answer, draw: Draw) -> None:
    """each block has its own share, so a block that keeps everything can be left out"""
    maps = draw.maps(2, N=2)  # There are as many blocks as tokens.
    found, expected = answer.rollout(maps, shares(draw, 1.0, 0.0)), answer.rollout(maps[1:], shares(draw, 0.0))
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Two blocks and two tokens, keep [1, 0]: in token {i}, the share of token {j} is {shown(found[b, i, j])}. "
            f"Block 0 keeps everything, and block 1 alone, with keep 0, gives {shown(expected[b, i, j])}. keep[l] "
            "belongs to block l, to all of its tokens and to nothing else."
        )


def kept_is_what_it_became(answer: Answer, draw: Draw) -> None:
    """what a token keeps is what it has become by then"""
    maps = draw.maps(2)
    found, expected = answer.rollout(maps, shares(draw, 0.0, 1.0)), answer.rollout(maps[:1], shares(draw, 0.0))
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Block 0 keeps nothing, and block 1 keeps everything, so what block 0 made should stay: in token {i}, the "
            f"share of token {j} should be {shown(expected[b, i, j])}, but is {shown(found[b, i, j])}. Block 1 knows "
            "nothing about the original tokens: what it keeps is what block 0 hands to it."
        )


def mean_over_heads_counts(answer: Answer, draw: Draw) -> None:
    """only the mean over heads counts, in every block"""
    maps, keep = draw.maps(2), draw.uniform(2)
    averaged = [torch.zeros_like(one) + one.mean(1, keepdim=True) for one in maps]
    found, expected = answer.rollout(maps, keep), answer.rollout(averaged, keep)
    if not close(found, expected):
        b, i, j = worst(found, expected)
        raise Wrong(
            f"Two blocks: if every head gets the mean map of the {draw.H} heads of its block, the share of token {j} "
            f"in token {i} is {shown(expected[b, i, j])} instead of {shown(found[b, i, j])}. A head of block 1 reads "
            "tokens to which all heads of block 0 have added: what head 0 found is not for head 0 alone."
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
            f"{depth} blocks, keep {shown(keep)}: in token {i}, the share of token {j} is {shown(found[b, i, j])}. The "
            f"last {depth - cut} blocks, applied to the result of the first {cut}, give {shown(expected[b, i, j])}. "
            "Every block does the same to its input: which of yours is treated differently?"
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
    "One block multiplies tokens (N, d) by a matrix (N, N). How do you make it from keep and the mean of the heads?",
    "A row of it is keep times the identity's row plus (1 - keep) times the mean map's row, so it sums to 1 as both "
    "do.",
    "Begin with the identity matrix (B, N, N), and let each block multiply it from the left, block 0 first.",
]
