"""The data set `matching`: which shape has the colour of the cue?

The answer lies in one of 15 places, and only its colour tells which. A model can only solve the task by comparing the
first cell with the others, which is what attention does. It is made of torch alone: nothing is downloaded.
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
# Red, green, blue, yellow, magenta, cyan, white, grey: no two nearer than 0.86 in RGB, nor to black.
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0.5] * 3])
NOISE = 0.15


class Layout(NamedTuple):
    """What is drawn where, for B images with 4 glyphs each."""

    shapes: Tensor  # (B, 4) of the 8 SHAPES, drawn independently
    colours: Tensor  # (B, 4) of the 8 COLOURS, all four distinct
    cells: Tensor  # (B, 4) of 1..15, all four distinct; cell 0 holds the cue
    shifts: Tensor  # (B, 4, 2) of 0..2: rows and columns between the cell's corner and the glyph's
    cue: Tensor  # (B,) of 0..3: the glyph whose colour the cue has, and whose shape is the label


def layout(count: int, seed: int) -> Layout:
    # One row of uniform numbers for each image, so that the first n images do not depend on `count`.
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
    """The images (B, 3, 32, 32) of a layout, without noise, on black."""
    pixels = "".join(GLYPHS.values()).replace(" ", "").encode()
    masks = (torch.tensor(list(pixels)) == ord("#")).float().view(8, 6, 6)
    shifted = [F.pad(masks, (right, 2 - right, down, 2 - down)) for down in range(3) for right in range(3)]
    stencils = torch.stack(shifted, dim=1)  # (shape, shift, 8, 8)

    image = torch.arange(len(plan.cue))
    colours = COLOURS[plan.colours]  # (B, 4, 3)
    tiles = torch.zeros(len(image), 16, 3, 8, 8)
    tiles[:, 0] = colours[image, plan.cue][:, :, None, None]
    glyphs = stencils[plan.shapes, 3 * plan.shifts[..., 0] + plan.shifts[..., 1]]  # (B, 4, 8, 8)
    tiles[image[:, None], plan.cells] = glyphs[:, :, None] * colours[..., None, None]
    return tiles.view(-1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)


def matching(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) float32 in [0, 1] and labels (count,) int64, an index into SHAPES.

    A 4 x 4 grid of cells of 8 x 8 pixels. The first cell is filled with the colour of one of four glyphs that lie in
    other cells; the label is that glyph's shape. Chance is 12.5 %; naming the commonest of the four shapes, without a
    look at the cue, is right for 41 %. The same seed gives the same images, and a smaller count the first of them.
    """
    plan = layout(count, seed)
    # A stream of its own: noise from the layout's numbers would be correlated with the layout.
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2 * seed + 1))
    images = noise.mul_(NOISE).add_(paint(plan)).clamp_(0, 1)
    return images, plan.shapes[torch.arange(count), plan.cue]
