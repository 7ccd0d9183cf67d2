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

DRAWS = 4  # of each law: one builds whole models
RETURNS = {"score": lambda teacher, images, labels: 0.0}
IMAGES = 48  # that a law asks for a score of
CONFIG = ViTConfig(img_size=32, patch_size=8, dim=32, depth=1, heads=2, num_classes=8)


# ---- Teachers whose maps are made to order ---------------------------------------------------------------------------


class Sight:
    """Where to look: at which patch of each image that is known. `at` are the patches for the batch in sight."""

    def __init__(self, images: Tensor, patches: Tensor) -> None:
        self.images, self.patches, self.at = images, patches, patches


class Pointer(Attention):
    """Attention whose class token gives a share to the patch in sight. All else is looked at alike.

    With `stretch` and `shift` q and k are other numbers, and the maps the same.
    """

    def __init__(self, sight: Sight, share: float, stretch: float, shift: float) -> None:
        super().__init__(CONFIG)
        self.sight, self.share, self.stretch, self.shift = sight, share, stretch, shift

    def route(self, x: Tensor, rope: object, bias: object) -> Routing:
        B, N, D = x.shape
        d = D // self.heads
        k = torch.eye(N, d).roll(1, 0).to(x)  # the class token's is 0, and each patch has a feature of its own
        logit = math.log(self.share / (1 - self.share) * (N - 1))
        q = torch.zeros(B, N, d).to(x)
        q[:, 0] = k[1 + self.sight.at] * logit * math.sqrt(d)
        q, k = q * self.stretch, (k + self.shift).expand(B, -1, -1) / self.stretch
        return Routing(*(part[:, None].expand(-1, self.heads, -1, -1) for part in (q, k)))


class Pointing(ViT):
    """A teacher of random weights that looks where it is told."""

    def __init__(
        self, images: Tensor, patches: Tensor, share: float = 0.9, stretch: float = 1.0, shift: float = 0.0
    ) -> None:
        super().__init__(CONFIG)
        self.sight = Sight(images, patches)
        for block in self.blocks:
            block.attn = Pointer(self.sight, share, stretch, shift)
        self.to(images.dtype).eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        some, known = (x.flatten(1)[:, ::64] for x in (images, self.sight.images))  # pixels enough to know an image by
        self.sight.at = self.sight.patches[torch.cdist(some, known).argmin(1)]
        return super().embed(images)


class Scene(NamedTuple):
    """Images to score a teacher on, and where a teacher could look."""

    images: Tensor  # (B, 3, 32, 32)
    labels: Tensor  # (B,)
    cued: Tensor  # (B,) the patch of the glyph that the cue means
    another: Tensor  # (B,) the patch of another glyph of the image
    teacher: Pointing  # at the cued glyph
    right: float  # its score
    blind: float  # the score of a teacher that looks everywhere alike


def scene(answer: Answer, draw: Draw) -> Scene:
    return painted(answer, draw.integer(2, 1_000_000), draw.dtype)


@lru_cache(maxsize=4)  # the laws of one draw have the same seed
def painted(answer: Answer, seed: int, dtype: torch.dtype) -> Scene:
    images, labels = matching(IMAGES, seed)
    images, plan, row = 2 * images.to(dtype) - 1, layout(IMAGES, seed), torch.arange(IMAGES)
    cued, another = plan.cells[row, plan.cue], plan.cells[row, (plan.cue + 1) % 4]
    torch.manual_seed(seed)
    teacher = Pointing(images, cued)
    scores = [answer.score(one, images, labels) for one in (teacher, Pointing(images, cued, share=1 / 17))]
    return Scene(images, labels, cued, another, teacher, *scores)


# ---- Laws ------------------------------------------------------------------------------------------------------------

# They are the same for all sizes: each runs at the first level alone.


def same(a: float, b: float, unit: float = 0.0) -> bool:
    """Whether two scores agree, to what a sum in another order may change.

    A score may have any unit and any zero. So what counts is a thousandth of `unit`, by which two teachers differ.
    """
    return abs(a - b) <= 1e-3 * abs(unit) + 1e-6 * max(abs(a), abs(b))


def repeats(answer: Answer, draw: Draw) -> None:
    """the same teacher, images and labels have the same score"""
    if draw.level:
        return
    images, labels, _, _, _, right, blind = scene(answer, draw)
    teacher = ViT(find_teacher("deit_nano").config).to(draw.dtype).eval()
    first = answer.score(teacher, images[:12], labels[:12])
    torch.manual_seed(draw.integer(0, 1000))
    second = answer.score(teacher, images[:12], labels[:12])
    if not same(first, second, right - blind):
        raise Wrong(
            f"An untrained deit_nano, 12 images, twice: {shown(first)}, then {shown(second)}. If the score is drawn by "
            f"lot, so is the order of teachers. Draw with a torch.Generator of a fixed seed, or not at all."
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
            f"The same {IMAGES} images with their labels, in another order: {shown(right)}, then {shown(second)}. The "
            "set of images is the same. If you keep some to test on, do not choose them by their place: leave out "
            "each image in turn."
        )


def maps_alone(answer: Answer, draw: Draw) -> None:
    """teachers of the same maps have the same score, whatever their other weights"""
    if draw.level:
        return
    images, labels, cued, _, _, right, blind = scene(answer, draw)
    torch.manual_seed(1)  # other random weights
    second = answer.score(Pointing(images, cued), images, labels)
    if not same(right, second, right - blind):
        raise Wrong(
            "Two teachers whose maps are the same to the last digit, and whose v, MLPs and heads are not, score "
            f"{shown(right)} and {shown(second)}. A student that copies gets the maps and nothing else, so to it both "
            "are worth the same. What do you read of the teacher beside its maps?"
        )


def any_q_and_k(answer: Answer, draw: Draw) -> None:
    """teachers of the same maps have the same score, whatever their q and k"""
    if draw.level:
        return
    images, labels, cued, _, _, right, blind = scene(answer, draw)
    second = answer.score(Pointing(images, cued, stretch=4.0, shift=0.5), images, labels)
    if not same(right, second, right - blind):
        raise Wrong(
            f"A teacher scores {shown(right)}. With k + 0.5 in the place of k, then q four times and k a quarter as "
            f"large, it scores {shown(second)}. No map has changed: a row of logits rose by one number, which softmax "
            "ignores (exercise 1). q, k and logits say things that no student ever sees."
        )


def looks_at_the_image(answer: Answer, draw: Draw) -> None:
    """a teacher that shows the cued glyph scores more than one that looks everywhere alike"""
    if draw.level:
        return
    _, _, _, _, _, right, blind = scene(answer, draw)
    found = (
        f"The class token of one teacher gives the cued glyph 0.9 of its row: {shown(right)}. That of another looks at "
        f"all 17 tokens alike, whatever the image: {shown(blind)}."
    )
    if same(right, blind):
        raise Wrong(
            f"{found} The second one knows nothing, and you cannot tell them apart. Each row of a map sums to 1: a "
            "mean over everything is the same for all maps."
        )
    if right < blind:
        raise Wrong(
            f"{found} Should be more for the first. Do you look for the label in the map itself? It is not there: the "
            f"cued glyph lies anywhere, whatever its shape. A map is an address, and the answer is what lies there."
        )


def looks_at_this_image(answer: Answer, draw: Draw) -> None:
    """a teacher that shows the cued glyph scores more than one that shows the place of another image's"""
    if draw.level:
        return
    images, labels, cued, _, _, right, _ = scene(answer, draw)
    other = answer.score(Pointing(images, cued.roll(1)), images, labels)
    if same(right, other) or right < other:
        raise Wrong(
            f"One teacher gives the cued glyph 0.9 of the class token's row: {shown(right)}. Another gives 0.9 to "
            f"where the glyph lies in the next image: {shown(other)}, should be less. The maps of both are as sharp, "
            "and differ as much from image to image. What can be seen in maps alone, without the images that they "
            "belong to, is the same for both (exercise 5)."
        )


def looks_at_what_matters(answer: Answer, draw: Draw) -> None:
    """a teacher that shows the cued glyph scores more than one that shows another glyph of the image"""
    if draw.level:
        return
    images, labels, _, another, _, right, _ = scene(answer, draw)
    other = answer.score(Pointing(images, another), images, labels)
    if same(right, other) or right < other:
        raise Wrong(
            f"One teacher shows the glyph that the cue means: {shown(right)}. Another always shows the same wrong one "
            f"of the other three: {shown(other)}, should be less. Both find glyphs, and black background nowhere. "
            "Which of them a student needs, only the labels say: is what a teacher shows of any use for the label?"
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
    "A copying student learns v and MLPs, and where it reads is given. What would it read with this teacher? Could the "
    "label be told from that, by something much simpler than a ViT?",
    "The class token decides. Cut the images into patches of pixels (F.unfold), read them with the class token's rows, "
    "and ask how well a simple classifier tells the label from what was read, on images that it was not fitted to.",
    "Nearest neighbours, or ridge regression on a kernel of distances, needs no training: both can leave out each "
    "image in turn (for ridge regression in closed form, with the diagonal of the hat matrix). Let colour not count.",
]
