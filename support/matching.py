"""This module makes the data set `matching`, which asks: which shape has the colour of the cue?

The answer is in one of 15 cells, and only its colour shows which. A model can solve the task only if it compares the
first cell with the others, which is what attention does. The images are computed, so nothing is downloaded.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GLYPHS = {
    "disc": "..##.. .####. ###### ###### .####. ..##..",
    "ring": "..##.. .#..#. #....# #....# .#..#. ..##..",
    "square": "###### ###### ###### ###### ###### ######",
    "frame": "###### #....# #....# #....# #....# ######",
    "plus": "..#... ..#... #####. ..#... ..#... ......",
    "cross": "#....# .#..#. ..##.. ..##.. .#..#. #....#",
    "horizontal bar": "...... ...... ###### ###### ...... ......",
    "vertical bar": "..##.. ..##.. ..##.. ..##.. ..##.. ..##..",
}
SHAPES = list(GLYPHS)
# These are red, green, blue, yellow, magenta, cyan, white and grey. Any two are at least
# 0.86 apart in RGB, and each is at least as far from black.
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0.5] * 3])
NOISE = 0.15


class Layout(NamedTuple):
    """A layout says what is drawn where, for B images with 4 glyphs each."""

    shapes: Tensor  # (B, 4). Each is one of the 8 SHAPES, and some may be equal.
    colours: Tensor  # (B, 4). Each is one of the 8 COLOURS, and the four of an image differ.
    cells: Tensor  # (B, 4). Each is from 1 to 15, and the four of an image differ. Cell 0 holds the cue.
    shifts: Tensor  # (B, 4, 2). A glyph lies this many rows and columns, 0 to 2, from its cell's corner.
    cue: Tensor  # (B,). The cue has the colour of this glyph, 0 to 3, whose shape is the label.


def layout(count: int, seed: int) -> Layout:
    # Each image has its own row of random numbers, so that the first n images do not depend on `count`.
    u = torch.rand(count, 36, generator=torch.Generator().manual_seed(2 * seed))
    cells, colours, shapes, shifts, cue = u.split([15, 8, 4, 8, 1], dim=1)
    return Layout(
        shapes=(shapes * 8).long(),
        colours=colours.argsort(1)[:, :4],
        cells=1 + cells.argsort(1)[:, :4],
        shifts=(shifts * 3).long().view(count, 4, 2),
        cue=(cue * 4).long().squeeze(1),
    )


def paint(plan: Layout) -> Tensor:
    """Paints the images (B, 3, 32, 32) of a layout on black, without noise."""
    pixels = "".join(GLYPHS.values()).replace(" ", "")
    masks = torch.tensor([pixel == "#" for pixel in pixels]).float().view(8, 6, 6)
    # If a window of 8 x 8 pixels begins further down and right, it shows its shape further up and left.
    windows = F.pad(masks, (2, 2, 2, 2)).unfold(1, 8, 1).unfold(2, 8, 1)  # (shape, 3, 3, 8, 8)
    top, left = (2 - plan.shifts).unbind(-1)
    glyphs = windows[plan.shapes, top, left]  # (B, 4, 8, 8)

    image = torch.arange(len(plan.cue))
    colours = COLOURS[plan.colours][..., None, None]  # (B, 4, 3, 1, 1)
    tiles = torch.zeros(len(image), 16, 3, 8, 8)
    tiles[:, 0] = colours[image, plan.cue]
    tiles[image[:, None], plan.cells] = glyphs[:, :, None] * colours
    return F.fold(tiles.flatten(2).transpose(1, 2), 32, 8, stride=8)


def matching(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns images (count, 3, 32, 32), float32 from 0 to 1, and labels (count,), int64 indices into SHAPES.

    An image is a 4 x 4 grid of cells of 8 x 8 pixels. The first cell is the cue, and four other cells hold one glyph
    each. The cue has the colour of one glyph, and the label is that glyph's shape. Chance is right for 12.5 % of the
    images. Naming the most frequent of the four shapes, without a look at the cue, is right for 41 %. The same seed
    gives the same images, and a smaller count gives the first of them.
    """
    plan = layout(count, seed)
    # The noise has its own generator. Noise from the layout's random numbers would be correlated with the layout.
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2 * seed + 1))
    images = noise.mul_(NOISE).add_(paint(plan)).clamp_(0, 1)
    return images, plan.shapes[torch.arange(count), plan.cue]
