"""This module implements RandAugment (Cubuk et al., arXiv 1909.13719) as timm does.

The public code of arXiv 2411.09702 uses it at magnitude 9, which timm calls rand-m9-mstd0.5-inc1. Here it uses
torch's generator, so the image's seed determines the result.
"""

import math
from typing import Any

import torch

OPERATIONS = (
    "autocontrast equalize invert posterize solarize solarize_add rotate adjust_saturation adjust_contrast "
    "adjust_brightness adjust_sharpness shear_x shear_y translate_x translate_y"
).split()


def rand_augment(image: Any, magnitude: float, mean: tuple) -> Any:
    """Draws two of OPERATIONS and applies each to a PIL image with probability 0.5.

    Their strength is drawn from a normal distribution around `magnitude`, with standard deviation 0.5, and clipped to
    [0, 10]. Pixels that a movement uncovers get the `mean` colour, three numbers from 0 to 1.
    """
    for _ in range(2):
        name = OPERATIONS[torch.randint(len(OPERATIONS), ())]
        if torch.rand(()) < 0.5:
            drawn = magnitude + 0.5 * float(torch.randn(()))
            sign = 1 if torch.rand(()) < 0.5 else -1
            image = operate(name, image, sign * min(max(drawn, 0), 10) / 10, [round(255 * share) for share in mean])
    return image


def operate(name: str, image: Any, strength: float, fill: list) -> Any:
    """Applies one operation to a PIL image. `strength` is from -1 to 1, and its sign is the direction, if any."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    size = abs(strength)
    lean = math.degrees(math.atan(0.3 * strength))
    shear = [0, 0]
    translate = [0, 0]
    options = dict(interpolation=InterpolationMode.BICUBIC, fill=fill)
    match name:
        case "autocontrast" | "equalize" | "invert":
            return getattr(F, name)(image)
        case "posterize":
            return F.posterize(image, max(1, 4 - int(4 * size)))  # This is the number of bits per channel.
        case "solarize":
            return F.solarize(image, 256 - int(256 * size))  # Pixels as bright as this or brighter are inverted.
        case "solarize_add":
            return image.point([min(255, v + int(110 * size)) if v < 128 else v for v in range(256)] * 3)
        case "rotate":
            return F.rotate(image, 30 * strength, **options)  # in degrees
        case "shear_x":
            shear[0] = lean
        case "shear_y":
            shear[1] = lean
        case "translate_x":
            translate[0] = 0.45 * strength * image.width
        case "translate_y":
            translate[1] = 0.45 * strength * image.height
        case _:  # The other four operations adjust something by a factor.
            return getattr(F, name)(image, max(0.1, 1 + 0.9 * strength))
    return F.affine(image, 0, translate, 1, shear, center=[0, 0], **options)
