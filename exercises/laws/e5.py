"""teachers that know nothing (2 h, 12 points)"""

import math

import torch
from kit import Answer, Draw, Wrong, close, shown, worst
from torch import Tensor

from model import Routing, attention_map

RETURNS = {
    "other_image": lambda r, generator: r,
    "no_image": lambda r: Routing(r.q, r.k, r.q.new_zeros(r.q.shape[1], r.q.shape[2], r.q.shape[2])),
}
SEEDS = 4  # A law tries this many generators with each draw.


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def owner(x: Tensor, of_images: Tensor) -> int | None:
    """Returns which image x belongs to, or None."""
    return next((image for image, theirs in enumerate(of_images) if close(x, theirs)), None)


def owners(answer: Answer, r: Routing, seed: int) -> list[int]:
    """Returns which image's map each image gets."""
    before, after = attention_map(r), attention_map(answer.other_image(r, seeded(seed)))
    return torch.cdist(after.flatten(1), before.flatten(1)).argmin(1).tolist()


# ---- other_image -----------------------------------------------------------------------------------------------------


def whole(answer: Answer, draw: Draw) -> None:
    """other_image: q and k of all heads move together, so an image gets exactly the maps of one image"""
    r = draw.routing(B=draw.B + 2)
    moved = answer.other_image(r, seeded(draw.level))
    before, after = attention_map(r), attention_map(moved)
    for image, one in enumerate(after):
        if owner(one, before) is not None:
            continue
        of_q, of_k = owner(moved.q[image], r.q), owner(moved.k[image], r.k)
        if None not in (of_q, of_k):
            raise Wrong(
                f"{len(r.q)} images: image {image} now has the q of image {of_q} and the k of image {of_k}, and their "
                "map belongs to no image. It is noise, not another image's knowledge: which of the two would explain "
                "a lower accuracy? A map is q and k together."
            )
        of_heads = [owner(head, before[:, number]) for number, head in enumerate(one)]
        if None not in of_heads:
            raise Wrong(
                f"{len(r.q)} images: the heads of image {image} now have the maps of images {of_heads}, in this order. "
                "No image ever looked like this. Heads share their work: all heads of one image stay together."
            )
        raise Wrong(
            f"{len(r.q)} images: the map that image {image} gets is none of the {len(r.q)} original ones; its first "
            f"row is {shown(one[0, 0])}. The control should change one thing, which image a map belongs to: tokens, "
            "heads and numbers stay as they are."
        )


def own_bias(answer: Answer, draw: Draw) -> None:
    """other_image: a bias belongs to all images, and its heads stay where they are"""
    r = draw.routing(B=draw.H, bias=True)  # With as many images as heads, an index of images fits the bias, too.
    moved = answer.other_image(r, seeded(draw.level))
    if not close(moved.bias, r.bias):
        head, i, j = worst(moved.bias, r.bias)
        raise Wrong(
            f"{draw.H} images and {draw.H} heads: the bias [{head}, {i}, {j}] was {shown(r.bias[head, i, j])} and is "
            f"{shown(moved.bias[head, i, j])}. A bias (H, N, N) has no dimension of images. Its first dimension is the "
            f"heads: if you reorder it, head {head} gets the bias of another head."
        )


def never_its_own(answer: Answer, draw: Draw) -> None:
    """other_image: no image keeps its own map, even if there are only two"""
    for B in (2, draw.B + 2):
        r = draw.routing(B=B)
        for seed in range(SEEDS):
            found = owners(answer, r, seed)
            kept = [image for image in range(B) if found[image] == image]
            if kept:
                raise Wrong(
                    f"{B} images, generator seed {seed}: the maps are now those of images {found}, and image {kept[0]} "
                    "kept its own. A random order leaves one image in place on average, however many there are. With "
                    "two images, both stay half of the time. Then you partly measure the true teacher."
                )


def each_once(answer: Answer, draw: Draw) -> None:
    """other_image: every map is used once"""
    r = draw.routing(B=3 + draw.level)
    for seed in range(SEEDS):
        found = owners(answer, r, seed)
        lost = sorted(set(range(len(r.q))) - set(found))
        if lost:
            raise Wrong(
                f"{len(r.q)} images, generator seed {seed}: the maps are now those of images {found}; the map of image "
                f"{lost[0]} is not used. A control changes one thing: the maps of the batch stay the same, and only "
                "which image gets which is new."
            )


def drawn(answer: Answer, draw: Draw) -> None:
    """other_image: the generator alone decides which image gets which map"""
    if draw.level:
        return  # The law is the same for all sizes.
    r = draw.routing(B=3)  # For three images there are two ways.
    ways = set()
    for seed in range(20):
        first = owners(answer, r, seed)
        second = owners(answer, r, seed) if seed < SEEDS else first
        if first != second:
            raise Wrong(
                f"Three images, and a generator of seed {seed}, twice: the maps were those of images {first}, then of "
                f"{second}. Your function draws from elsewhere, such as torch's global generator. Then the blocks of "
                "one network would look at different images, and no run could be repeated."
            )
        ways.add(tuple(first))
    if len(ways) == 1:
        raise Wrong(
            f"Three images: 20 generators of different seeds all gave the maps of images {[*ways][0]}, although there "
            "are two ways. A fixed shift depends on the order of the batch; draw with the generator."
        )


own_bias.needs = never_its_own.needs = each_once.needs = drawn.needs = [whole]


# ---- no_image --------------------------------------------------------------------------------------------------------


def by_hand(answer: Answer, draw: Draw) -> None:
    """no_image: the mean of the rows 0.9, 0.1 and 0.5, 0.5 is 0.7, 0.3"""
    logit = math.log(9)
    q = torch.tensor([1.0, 0.5], dtype=draw.dtype).view(2, 1, 1, 1).expand(2, 1, 2, 1)  # two images, d = 1
    k = torch.tensor([[logit, 0.0], [0.0, 0.0]], dtype=draw.dtype).view(2, 1, 2, 1)
    shares = attention_map(answer.no_image(Routing(q, k), allow_infinite=True))[:, 0, 0, 0]  # (images,), of token 0
    if close(shares, torch.full_like(shares, 0.7)):
        return
    if not close(shares[0], shares[1]):
        raise Wrong(
            "The rows of two images give token 0 shares of 0.9 and 0.5. After no_image the shares are "
            f"{shown(shares)}. The images still differ, so the student still learns which one it sees; each should get "
            "0.7."
        )
    if close(shares, torch.full_like(shares, 0.75)):
        raise Wrong(
            "The rows of two images give token 0 shares of 0.9 and 0.5. You give it 0.75, which should be 0.7. 0.75 "
            "comes from the mean of logits: odds of 9 and of 1 have the geometric mean 3, and 3 to 1 is 0.75. A "
            "student reads with shares, so take the mean of shares."
        )
    raise Wrong(
        f"The rows of two images give token 0 shares of 0.9 and 0.5. You give it {shown(shares[0])}, which should be "
        "0.7. The mean of q times the mean of k is not the mean of their products, and softmax is not linear either. "
        "Begin with the maps; then ask which q, k and bias have a given map."
    )


def once(answer: Answer, draw: Draw) -> None:
    """no_image: a bias is already in the maps, and counts only once"""
    bias = torch.tensor([0.7, 0.3], dtype=draw.dtype).log().expand(1, 2, 2)
    q = k = torch.zeros(2, 1, 2, 3, dtype=draw.dtype)
    share = attention_map(answer.no_image(Routing(q, k, bias), allow_infinite=True))[0, 0, 0, 0]
    if not close(share, torch.full_like(share, 0.7)):
        raise Wrong(
            "q and k are 0 and the bias is log 0.7, log 0.3, so all maps have shares of 0.7 and 0.3. Yours gives "
            f"token 0 a share of {shown(share)} (with the bias counted twice it would be 0.49 / 0.58 = 0.845, and "
            "without it 0.5). The map of an image already contains its bias."
        )


def head_by_head(answer: Answer, draw: Draw) -> None:
    """no_image: each head has its own mean"""
    k = 400 * torch.eye(2, dtype=draw.dtype)  # Keys are one-hot, d = 2.
    q = torch.stack((k[[0, 0]], k[[1, 1]])).expand(2, 2, 2, 2)  # Head 0 looks at token 0, head 1 at token 1.
    shares = attention_map(answer.no_image(Routing(q, k.expand(2, 2, 2, 2)), allow_infinite=True))[0, :, 0, 0]
    if not close(shares, torch.tensor([1.0, 0.0], dtype=draw.dtype)):
        raise Wrong(
            "In both images head 0 looks at token 0 alone and head 1 at token 1 alone. After no_image the heads give "
            f"token 0 shares of {shown(shares)}, which should be [1, 0]. The mean is over images: what makes heads "
            "differ does not depend on the image, and stays."
        )


def exact(answer: Answer, draw: Draw) -> None:
    """no_image: every image, head and token gets exactly the mean of the batch"""
    square = draw.square()
    for r in (draw.routing(B=draw.B + 1, bias=True), square.routing(B=square.N, bias=True)):
        before, after = attention_map(r), attention_map(answer.no_image(r, allow_infinite=True))
        expected = before.mean(0).expand_as(after)
        if not close(after, expected):
            b, h, i, j = worst(after, expected)
            raise Wrong(
                f"{len(before)} images, head {h}: token {i} gives token {j} the shares {shown(before[:, h, i, j])}, "
                f"whose mean is {shown(expected[b, h, i, j])}; yours is {shown(after[b, h, i, j])}. Do you take the "
                "mean over images, and not over heads, rows or columns?"
            )


once.needs = head_by_head.needs = [by_hand]
exact.needs = [once, head_by_head]

LAWS = [whole, own_bias, never_its_own, each_once, drawn, by_hand, once, head_by_head, exact]
HINTS = [
    "other_image: think of the images as standing in a random circle. no_image: which part of a Routing has no "
    "dimension of images?",
    "other_image: torch.randperm gives the circle; each image takes the map of its neighbour in the circle. "
    "no_image: take attention_map(r), then its mean over the right dimension, (H, N, N).",
    "other_image: index q and k with the same partners, and keep the bias. no_image: with q = 0 and k = 0 the map is "
    "softmax(bias); for which bias is softmax(bias) = p, where p sums to 1?",
]
