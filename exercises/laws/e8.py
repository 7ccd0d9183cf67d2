"""say the gain before you train (a day, 25 points)"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from kit import Answer, Draw, Wrong, shown
from torch import Tensor

from model import Attention, Routing, ViT, ViTConfig
from support.matching import layout, matching
from teachers import find_teacher

DRAWS = 4  # There are few draws, because each builds whole models.
RETURNS = {"score": lambda teacher, images, labels: 0.0}
IMAGES = 48  # A law asks for a score on this many images.
OTHER = ViTConfig(img_size=32, patch_size=16, dim=32, depth=2, heads=4, registers=2)  # It has no head.
CONFIG = ViTConfig(img_size=32, patch_size=8, dim=32, depth=1, heads=2, num_classes=8)


# ---- Teachers with known maps ----------------------------------------------------------------------------------------


class Sight:
    """Where to look: one of the `patches` in each of the `images`. `at` are the patches for the current batch."""

    def __init__(self, images: Tensor, patches: Tensor) -> None:
        self.images, self.patches, self.at = images, patches, patches


class Pointer(Attention):
    """Attention whose class token gives `share` to the patch in sight. All else is looked at equally.

    With `stretch` and `shift` q and k change, but the maps do not.
    """

    def __init__(self, sight: Sight, share: float, stretch: float, shift: float) -> None:
        super().__init__(CONFIG)
        self.sight, self.share, self.stretch, self.shift = sight, share, stretch, shift

    def route(self, x: Tensor, rope: object, bias: object) -> Routing:
        B, N, D = x.shape
        d = D // self.heads
        k = torch.eye(N, d).roll(1, 0).to(x)  # The class token's key is 0, and each patch has its own feature.
        logit = math.log(self.share / (1 - self.share) * (N - 1))
        q = torch.zeros(B, N, d).to(x)
        q[:, 0] = k[1 + self.sight.at] * logit * math.sqrt(d)
        q, k = q * self.stretch, (k + self.shift).expand(B, -1, -1) / self.stretch
        return Routing(*(part[:, None].expand(-1, self.heads, -1, -1) for part in (q, k)))


class Pointing(ViT):
    """A teacher with random weights that looks at the given patches."""

    def __init__(
        self, images: Tensor, patches: Tensor, share: float = 0.9, stretch: float = 1.0, shift: float = 0.0
    ) -> None:
        super().__init__(CONFIG)
        self.sight = Sight(images, patches)
        for block in self.blocks:
            block.attn = Pointer(self.sight, share, stretch, shift)
        self.to(images.dtype).eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        some, known = (x.flatten(1)[:, ::64] for x in (images, self.sight.images))  # These pixels tell images apart.
        self.sight.at = self.sight.patches[torch.cdist(some, known).argmin(1)]
        return super().embed(images)


class Scene(NamedTuple):
    """Images on which to score a teacher, and where a teacher could look."""

    images: Tensor  # (B, 3, 32, 32)
    labels: Tensor  # (B,)
    cued: Tensor  # (B,). This is the patch of the glyph that the cue means.
    another: Tensor  # (B,). This is the patch of another glyph in the image.
    teacher: Pointing  # It looks at the cued glyph.
    right: float  # This is its score.
    blind: float  # This is the score of a teacher that looks everywhere equally.


def scene(answer: Answer, draw: Draw) -> Scene:
    return painted(answer, draw.integer(2, 1_000_000), draw.dtype)


@lru_cache(maxsize=4)  # The laws of one draw have the same seed.
def painted(answer: Answer, seed: int, dtype: torch.dtype) -> Scene:
    images, labels = matching(IMAGES, seed)
    images, plan, row = 2 * images.to(dtype) - 1, layout(IMAGES, seed), torch.arange(IMAGES)
    cued, another = plan.cells[row, plan.cue], plan.cells[row, (plan.cue + 1) % 4]
    torch.manual_seed(seed)
    teacher = Pointing(images, cued)
    scores = [answer.score(one, images, labels) for one in (teacher, Pointing(images, cued, share=1 / 17))]
    return Scene(images, labels, cued, another, teacher, *scores)


# ---- Laws ------------------------------------------------------------------------------------------------------------

# The laws are the same for all sizes, so each runs only at the first level.


def same(a: float, b: float, unit: float = 0.0) -> bool:
    """Tells whether two scores agree, up to what a sum in another order may change.

    A score may have any unit and zero. So scores may differ by a thousandth of `unit`, by which two teachers differ.
    """
    return abs(a - b) <= 1e-3 * abs(unit) + 1e-6 * max(abs(a), abs(b))


def repeats(answer: Answer, draw: Draw) -> None:
    """the same teacher, images and labels get the same score"""
    if draw.level:
        return
    images, labels, _, _, _, right, blind = scene(answer, draw)
    answer.score(ViT(OTHER).to(draw.dtype).eval(), images[:12], labels[:12])  # It must work for other sizes, too.
    teacher = ViT(find_teacher("deit_nano").config).to(draw.dtype).eval()
    first = answer.score(teacher, images[:12], labels[:12])
    torch.manual_seed(draw.integer(0, 1000))
    second = answer.score(teacher, images[:12], labels[:12])
    if not same(first, second, right - blind):
        raise Wrong(
            f"An untrained deit_nano on 12 images, twice: {shown(first)}, then {shown(second)}. If the score is "
            "random, so is the order of teachers. Draw with a torch.Generator of a fixed seed, or not at all."
        )


def any_order(answer: Answer, draw: Draw) -> None:
    """the order of the images does not matter"""
    if draw.level:
        return
    images, labels, _, _, teacher, right, blind = scene(answer, draw)
    order = torch.randperm(IMAGES, generator=draw.generator)
    second = answer.score(teacher, images[order], labels[order])
    if not same(right, second, right - blind):
        raise Wrong(
            f"The same {IMAGES} images with their labels, in another order: {shown(right)}, then {shown(second)}. If "
            "you keep some of them for testing, do not choose them by their position: leave out each image in turn."
        )


def maps_alone(answer: Answer, draw: Draw) -> None:
    """teachers with the same maps get the same score, whatever their other weights are"""
    if draw.level:
        return
    images, labels, cued, _, _, right, blind = scene(answer, draw)
    torch.manual_seed(1)  # other random weights
    second = answer.score(Pointing(images, cued), images, labels)
    if not same(right, second, right - blind):
        raise Wrong(
            f"Two teachers have exactly the same maps, but other v, MLPs and heads. They score {shown(right)} and "
            f"{shown(second)}. A student that copies gets the maps and nothing else, so for it both are worth the "
            "same. What do you use from the teacher besides its maps?"
        )


def any_q_and_k(answer: Answer, draw: Draw) -> None:
    """teachers with the same maps get the same score, whatever their q and k are"""
    if draw.level:
        return
    images, labels, cued, _, _, right, blind = scene(answer, draw)
    second = answer.score(Pointing(images, cued, stretch=4.0, shift=0.5), images, labels)
    if not same(right, second, right - blind):
        raise Wrong(
            f"A teacher scores {shown(right)}. With k + 0.5 in place of k, then q four times and k a quarter as large, "
            f"it scores {shown(second)}. No map has changed: all logits of a row rose by one number, which softmax "
            "ignores (exercise 1). q, k and logits say things that no student ever sees."
        )


def looks_at_the_image(answer: Answer, draw: Draw) -> None:
    """a teacher that points at the cued glyph scores higher than one that looks everywhere equally"""
    if draw.level:
        return
    _, _, _, _, _, right, blind = scene(answer, draw)
    found = (
        f"The class token of one teacher gives the cued glyph a share of 0.9: it scores {shown(right)}. That of "
        f"another looks at all 17 tokens equally, whatever the image: it scores {shown(blind)}."
    )
    if same(right, blind):
        raise Wrong(
            f"{found} The second one knows nothing, but the scores do not differ. Each row of a map sums to 1: a mean "
            "over everything is the same for all maps."
        )
    if right < blind:
        raise Wrong(
            f"{found} The first should score higher. Do you look for the label in the map itself? It is not there: the "
            "cued glyph lies anywhere, whatever its shape. A map is an address, and the answer is what lies there."
        )


def looks_at_this_image(answer: Answer, draw: Draw) -> None:
    """a teacher that points at the cued glyph scores higher than one that points where it is in another image"""
    if draw.level:
        return
    images, labels, cued, _, _, right, _ = scene(answer, draw)
    other = answer.score(Pointing(images, cued.roll(1)), images, labels)
    if same(right, other) or right < other:
        raise Wrong(
            f"One teacher gives the cued glyph a share of 0.9: it scores {shown(right)}. Another gives 0.9 to where "
            f"the cued glyph of another image lies: it scores {shown(other)}, which should be less. Their maps are "
            "equally sharp, and differ equally from image to image. What can be seen in maps alone, without the "
            "images that they belong to, is the same for both (exercise 5)."
        )


def looks_at_what_matters(answer: Answer, draw: Draw) -> None:
    """a teacher that points at the cued glyph scores higher than one that points at another glyph"""
    if draw.level:
        return
    images, labels, _, another, _, right, _ = scene(answer, draw)
    other = answer.score(Pointing(images, another), images, labels)
    if same(right, other) or right < other:
        raise Wrong(
            f"One teacher points at the glyph that the cue means: it scores {shown(right)}. Another always points at "
            f"the same wrong one of the other three: it scores {shown(other)}, which should be less. Both point at "
            "glyphs, and never at the black background. Only the labels say which glyph a student needs: does what a "
            "teacher points at help to predict the label?"
        )


any_q_and_k.needs = [maps_alone]
looks_at_this_image.needs = looks_at_what_matters.needs = [looks_at_the_image]

LAWS = [
    repeats,
    any_order,
    maps_alone,
    any_q_and_k,
    looks_at_the_image,
    looks_at_this_image,
    looks_at_what_matters,
]
HINTS = [
    "A copying student learns v and MLPs; where it reads is given. What would it read with this teacher? Could "
    "something much simpler than a ViT predict the label from that?",
    "The class token decides. Cut the images into patches of pixels (F.unfold), read them with the class token's "
    "rows, and ask how well a simple classifier predicts the label from what was read, on images that it was not "
    "fitted to.",
    "Nearest neighbours, or ridge regression on a kernel of distances, need no training: both can leave out each "
    "image in turn (for ridge regression in closed form, with the diagonal of the hat matrix). Ignore colour.",
]
