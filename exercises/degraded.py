"""Degraded teachers for exercise 8: one good nano teacher, whose routing is spoilt step by step in four ways.

gains.json holds the top-1, in percent, of the students that copy each of them; a mean over seeds.
"""

import copy

import torch

from model import ViT

# By way, the strengths. "flat 0" is the teacher itself.
GRADES = {
    "flat": (0.0, 0.5, 0.7, 0.8, 1.0),
    "noise": (2.0, 4.0, 8.0),
    "swap": (0.25, 0.5, 0.75, 1.0),
    "sharp": (8.0, 32.0),
}


@torch.no_grad()
def degrade(teacher: ViT, way: str, strength: float, seed: int = 0) -> ViT:
    """A copy of a teacher with a worse routing, made by weights alone, so that it is a teacher as any other.

    Only the rows of each block's `attn.qkv.weight` (3 D, D) and bias that make q are changed:

    - "noise": adds normal noise of `strength` times the deviation of those rows. Tokens ask partly at random.
    - "flat": shrinks them by 1 - strength. At 1 all logits are 0, and every token looks at all alike.
    - "sharp": stretches them by 1 + strength. Tokens look at one token alone.
    - "swap": that share of the heads asks with the q of the next head. Heads get another head's questions.

    The noise follows from `seed`. The teacher's stream changes with its routing, so later blocks suffer twice.
    """
    worse, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(seed)
    heads, D = teacher.config.heads, teacher.config.dim
    for block in worse.blocks:
        weight, bias = block.attn.qkv.weight[:D], block.attn.qkv.bias[:D]  # parts that are views: changed in place
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
    """The degraded teachers by name, as "noise 2"."""
    grades = [(way, strength) for way in GRADES for strength in GRADES[way]]
    return {f"{way} {strength:g}": degrade(teacher, way, strength, seed) for way, strength in grades}
