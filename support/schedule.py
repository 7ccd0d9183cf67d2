"""The learning rate's course over a training, of a student or of a nano teacher."""

import math


def cosine_schedule(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
