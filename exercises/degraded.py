"""This module makes worse teachers for exercise 8: the routing of a good nano teacher is degraded in four ways.

gains.json has the top-1, in percent, of the students that copy each of them, averaged over seeds.
"""

import copy

import torch

from model import ViT

# Each way has several strengths. "flat 0" is the teacher itself.
GRADES = {
    "flat": (0.0, 0.5, 0.7, 0.8, 1.0),
    "noise": (2.0, 4.0, 8.0),
    "swap": (0.25, 0.5, 0.75, 1.0),
    "sharp": (8.0, 32.0),
}


@torch.no_grad()
def degrade(teacher: ViT, way: str, strength: float, seed: int = 0) -> ViT:
    """Returns a copy of a teacher with a worse routing. Only weights change, so it can be used like any other.

    The changed rows are those that make q, in the weight (3 D, D) and the bias of each block's `attn.qkv`:

    - "noise" adds normal noise to the weight, of `strength` times its standard deviation.
    - "flat" multiplies them by 1 - strength. At 1 all logits are 0, and tokens look everywhere equally.
    - "sharp" multiplies them by 1 + strength. Each token looks at one token only.
    - "swap" gives this share of the heads the q of the next head.

    The noise depends on `seed` alone. The teacher's stream changes with its routing, so later blocks suffer twice.
    """
    worse, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(seed)
    heads, D = teacher.config.heads, teacher.config.dim
    for block in worse.blocks:
        weight, bias = block.attn.qkv.weight[:D], block.attn.qkv.bias[:D]  # These are views, so they change in place.
        if way == "noise":
            weight += strength * weight.std() * torch.randn(weight.shape, generator=generator)
            continue
        for q in (weight, bias):
            if way == "swap":
                by_head, moved = q.view(heads, D // heads, -1), round(strength * heads)
                by_head[:moved] = by_head.roll(-1, 0)[:moved]
            else:
                q *= 1 - strength if way == "flat" else 1 + strength
    return worse


def all_degraded(teacher: ViT, seed: int = 0) -> dict[str, ViT]:
    """Returns the degraded teachers by name, such as "noise 2"."""
    grades = [(way, strength) for way in GRADES for strength in GRADES[way]]
    return {f"{way} {strength:g}": degrade(teacher, way, strength, seed) for way, strength in grades}
