"""RandAugment (Cubuk et al., arXiv 1909.13719) as the public code of arXiv 2411.09702 has it: timm's, at magnitude 9.

timm calls it rand-m9-mstd0.5-inc1. Here it draws from torch's generator, so that it follows from the image's seed.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

OPERATIONS = (
    "autocontrast equalize invert posterize solarize solarize_add rotate adjust_saturation adjust_contrast "
    "adjust_brightness adjust_sharpness shear_x shear_y translate_x translate_y"
).split()


def rand_augment(image: Any, magnitude: float, mean: Sequence[float]) -> Any:
    """A PIL image after two operations, each drawn from OPERATIONS and done with probability 0.5.

    Their strength is normal around `magnitude`, from 0 to 10, with deviation 0.5. What a movement lays bare is filled
    with the `mean` colour, three numbers from 0 to 1.
    """
    for _ in range(2):
        name = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
        if torch.rand(()) < 0.5:
            drawn = magnitude + 0.5 * float(torch.randn(()))
            sign = 1 if torch.rand(()) < 0.5 else -1
            image = operate(name, image, sign * min(max(drawn, 0), 10) / 10, [round(255 * share) for share in mean])
    return image


def operate(name: str, image: Any, strength: float, fill: list[int]) -> Any:
    """A PIL image after one operation. `strength` is from -1 to 1; what has no direction takes its size."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    size, options = abs(strength), dict(interpolation=InterpolationMode.BICUBIC, fill=fill)
    move = partial(F.affine, image, angle=0, translate=[0, 0], scale=1, shear=[0, 0], center=[0, 0], **options)
    lean = math.degrees(math.atan(0.3 * strength))
    match name:
        case "autocontrast" | "equalize" | "invert":
            return getattr(F, name)(image)
        case "posterize":
            return F.posterize(image, max(1, 4 - int(4 * size)))  # bits a channel
        case "solarize":
            return F.solarize(image, 256 - int(256 * size))  # inverts what is as bright or brighter
        case "solarize_add":
            return image.point([min(255, v + int(110 * size)) if v < 128 else v for v in range(256)] * 3)
        case "rotate":
            return F.rotate(image, 30 * strength, **options)  # degrees
        case "shear_x":
            return move(shear=[lean, 0])
        case "shear_y":
            return move(shear=[0, lean])
        case "translate_x":
            return move(translate=[0.45 * strength * image.width, 0])
        case "translate_y":
            return move(translate=[0, 0.45 * strength * image.height])
    return getattr(F, name)(image, max(0.1, 1 + 0.9 * strength))  # the four that adjust by a factor
