"""blinkers (90 min, 10 points)"""

import itertools
from functools import cache

import torch
from kit import Answer, Draw, Wrong, close, shown, worst
from torch import Tensor

from model import Routing, ViTConfig, attention_map

RETURNS = {"windowed": lambda r, config, radius: Routing(r.q, r.k, r.q.new_zeros(r.q.shape[1], *[r.q.shape[2]] * 2))}


def case(draw: Draw, registers: int = 0, class_token: bool = True, bias: bool = False) -> tuple[Routing, ViTConfig]:
    """Returns a routing and the config of a model that has it, with a grid from 3 x 3 to 5 x 5."""
    grid = 3 + draw.level // 2
    sizes = {"img_size": 8 * grid, "patch_size": 8, "dim": draw.H * draw.d, "heads": draw.H}
    config = ViTConfig(**sizes, registers=registers, class_token=class_token)
    return draw.routing(N=config.prefix + grid**2, bias=bias), config


def seen(answer: Answer, r: Routing, config: ViTConfig, radius: int) -> Tensor:
    """Returns the map with blinkers: (B, H, N, N)."""
    found = attention_map(answer.windowed(r, config, radius, allow_infinite=True))  # A bias may be -inf.
    if not found.isfinite().all():
        b, h, i, _ = worst(found, found * 0)
        raise Wrong(
            f"Radius {radius}, grid {config.grid} x {config.grid}: the row of token {i} is {shown(found[b, h, i])}. "
            "softmax makes nan from a row that is all -inf, or has nan or inf in it. Each token sees at least itself, "
            "and -inf times 0 is nan: choose with torch.where instead of multiplying."
        )
    return found


@cache
def distances(grid: int) -> Tensor:
    """Counts how many rows or columns, whichever is more, two patches are apart: (patches, patches)."""
    apart = torch.zeros(grid**2, grid**2)
    for i, j in itertools.product(range(grid**2), repeat=2):
        apart[i, j] = max(abs(i // grid - j // grid), abs(i % grid - j % grid))
    return apart


def between(found: Tensor, config: ViTConfig, i: int, j: int) -> float:
    """Returns the largest share, over images and heads, that patch i gives to patch j."""
    return float(found[..., config.prefix + i, config.prefix + j].max())


def first_tokens_are_free(answer: Answer, draw: Draw) -> None:
    """the class token sees all tokens and is seen by all"""
    r, config = case(draw)
    before, after = attention_map(r), seen(answer, r, config, 0)
    if not close(after[..., 0, :], before[..., 0, :]):
        b, h, j = worst(after[..., 0, :], before[..., 0, :])
        raise Wrong(
            f"Radius 0: the class token (token 0) gives token {j} a share of {shown(after[b, h, 0, j])}; before, it "
            f"was {shown(before[b, h, 0, j])}. It has no position in the grid, so it is neither near nor far: its row "
            "stays."
        )
    if not (after[..., 0] > 0).all():
        b, h, i = worst((after[..., 0] > 0).double(), torch.ones_like(after[..., 0]).double())
        raise Wrong(
            f"Radius 0: token {i} no longer sees the class token (token 0). Only patches are hidden from patches: the "
            f"blinkers are for pairs of patches, not for rows."
        )


def registers_are_free(answer: Answer, draw: Draw) -> None:
    """registers see all tokens and are seen by all, with or without a class token"""
    for class_token in (True, False):
        r, config = case(draw, registers=2, class_token=class_token)
        before, after, first = attention_map(r), seen(answer, r, config, 0), config.prefix
        rows_stay = close(after[..., :first, :], before[..., :first, :])
        if not (rows_stay and (after[..., :first] > 0).all()):
            raise Wrong(
                f"{'A' if class_token else 'No'} class token and 2 registers, radius 0: "
                f"{'the rows of the first tokens have changed' if not rows_stay else 'patches no longer see them'}. "
                f"The patches begin at token {first} here, which is config.prefix: registers have no position in the "
                "grid."
            )


def far_patches_are_hidden(answer: Answer, draw: Draw) -> None:
    """patches at opposite ends of a diagonal, a row or a column do not see each other"""
    r, config = case(draw)
    after, side = seen(answer, r, config, 1), config.grid
    ends = {
        "in the opposite corner": side**2 - 1,
        "at the end of its row": side - 1,
        "at the end of its column": side**2 - side,
    }
    for where, patch in ends.items():
        share = between(after, config, 0, patch)
        if share > 1e-8:
            raise Wrong(
                f"Radius 1, grid {side} x {side}: patch 0 gives patch {patch}, {where}, a share of {shown(share)}, "
                "which should be 0. A patch is hidden if its row or its column is too far away. A share of 0 needs a "
                "logit of -inf, or one so low that its exp is 0."
            )


def rows_of_the_grid_end(answer: Answer, draw: Draw) -> None:
    """neighbours in the list of patches need not be neighbours in the grid"""
    r, config = case(draw)
    side = config.grid
    share = between(seen(answer, r, config, 1), config, side - 1, side)
    if share > 1e-8:
        raise Wrong(
            f"Radius 1, grid {side} x {side}: patch {side - 1} gives patch {side} a share of {shown(share)}, which "
            f"should be 0. Patch {side - 1} ends a row and patch {side} begins the next: they are 1 apart in the list, "
            f"but {side - 1} in the grid."
        )


def corners_are_near(answer: Answer, draw: Draw) -> None:
    """patches are near if they share a side or a corner"""
    r, config = case(draw)
    after, side = seen(answer, r, config, 1), config.grid
    if between(after, config, 0, 1) == 0:
        raise Wrong(
            f"Radius 1, grid {side} x {side}: patch 0 does not see patch 1, which is right beside it. They are 1 "
            "column apart, and 'at most 1' includes 1."
        )
    if between(after, config, 0, side + 1) == 0:
        raise Wrong(
            f"Radius 1, grid {side} x {side}: patch 0, in the corner, does not see patch {side + 1}, which is 1 row "
            "and 1 column away. Both distances are within the radius, and they are not added: the window is a square."
        )


def window_is_exact(answer: Answer, draw: Draw) -> None:
    """a patch sees the patches within the radius and no others, in every head"""
    r, config = case(draw, registers=draw.integer(0, 3), class_token=bool(draw.integer(0, 2)))
    for radius in range(config.grid):
        after = seen(answer, r, config, radius)[..., config.prefix :, config.prefix :]
        is_near = distances(config.grid) <= radius
        share = torch.where(is_near, after.amin((0, 1)), after.amax((0, 1)))  # This is the worst over images and heads.
        wrong = is_near != (share > 1e-8)
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            places = [divmod(patch, config.grid) for patch in (i, j)]
            raise Wrong(
                f"Radius {radius}, grid {config.grid} x {config.grid}: patch {i} at (row, column) {places[0]} gives "
                f"patch {j} at {places[1]} a share of {shown(share[i, j])}. It is "
                f"{'near enough to have a share' if is_near[i, j] else 'too far away to have one'}."
            )


def large_radius_changes_nothing(answer: Answer, draw: Draw) -> None:
    """a radius of the whole grid changes nothing"""
    r, config = case(draw, registers=1)
    before, after = attention_map(r), seen(answer, r, config, config.grid)
    if not close(after, before):
        b, h, i, j = worst(after, before)
        raise Wrong(
            f"Radius {config.grid}, grid {config.grid} x {config.grid}: no patch is too far away, but token {i} gives "
            f"token {j} a share of {shown(after[b, h, i, j])} instead of {shown(before[b, h, i, j])}. What is near "
            "enough is seen exactly as before."
        )


def own_bias_is_kept(answer: Answer, draw: Draw) -> None:
    """the routing's own bias stays where patches see each other"""
    r, config = case(draw, bias=True)
    before, after = attention_map(r), seen(answer, r, config, config.grid)
    if not close(after, before):
        b, h, i, j = worst(after, before)
        raise Wrong(
            f"A routing with a bias, as in BEiT v2, and a radius of the whole grid: token {i} gives token {j} a share "
            f"of {shown(after[b, h, i, j])} instead of {shown(before[b, h, i, j])}. Without any bias it would be "
            f"{shown(attention_map(r._replace(bias=None))[b, h, i, j])}. Add yours to the bias that is there."
        )


def odds_stay(answer: Answer, draw: Draw) -> None:
    """the odds between tokens that are still seen stay as they were"""
    r, config = case(draw, bias=bool(draw.integer(0, 2)))
    before, after = attention_map(r), seen(answer, r, config, 1)
    expected = torch.where(after > 1e-8, before, 0.0)
    expected = expected / expected.sum(-1, keepdim=True)
    if not close(after, expected, 1e-6 if draw.dtype is torch.float64 else 1e-4):
        b, h, i, j = worst(after, expected)
        raise Wrong(
            f"Radius 1: token {i} gives token {j} a share of {shown(after[b, h, i, j])}; before, it was "
            f"{shown(before[b, h, i, j])}. What is hidden goes to all tokens that are still seen, in proportion, which "
            f"makes {shown(expected[b, h, i, j])}. What is seen keeps its logit: only what is hidden gets a new one."
        )


def smaller_radius_wins(answer: Answer, draw: Draw) -> None:
    """radius 2 followed by 1 equals radius 1, and so does 1 followed by 2"""
    r, config = case(draw, bias=True)
    expected = seen(answer, r, config, 1)
    for first, second in ((2, 1), (1, 2)):
        once = answer.windowed(r, config, first, allow_infinite=True)
        after = seen(answer, once, config, second)
        if not close(after, expected):
            b, h, i, j = worst(after, expected)
            raise Wrong(
                f"Blinkers of radius {first}, and over them blinkers of radius {second}: token {i} gives token {j} a "
                f"share of {shown(after[b, h, i, j])}, but with radius 1 alone {shown(expected[b, h, i, j])}. What was "
                "hidden once stays hidden: do not overwrite a bias that hides."
            )


registers_are_free.needs = far_patches_are_hidden.needs = [first_tokens_are_free]
rows_of_the_grid_end.needs = [far_patches_are_hidden]
corners_are_near.needs = [rows_of_the_grid_end]
large_radius_changes_nothing.needs = [registers_are_free, corners_are_near]
window_is_exact.needs = [rows_of_the_grid_end, corners_are_near, registers_are_free]
own_bias_is_kept.needs = [large_radius_changes_nothing]
odds_stay.needs = [window_is_exact, own_bias_is_kept]
smaller_radius_wins.needs = [odds_stay]

LAWS = [
    first_tokens_are_free,
    registers_are_free,
    far_patches_are_hidden,
    rows_of_the_grid_end,
    corners_are_near,
    window_is_exact,
    large_radius_changes_nothing,
    own_bias_is_kept,
    odds_stay,
    smaller_radius_wins,
]

HINTS = [
    "q and k stay. A logit of -inf gives a share of 0, and the bias is added to the logits: return a new bias.",
    "Patch n is in row n // grid and column n % grid. From the rows and columns of all patches, make a (patches, "
    "patches) mask.",
    "Put the mask into the corner [prefix:, prefix:] of an (N, N) one. Use masked_fill on r.bias, or on zeros (H, N, "
    "N).",
]
