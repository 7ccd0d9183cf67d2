"""This module has two schedules: for the learning rate, and for the decay of a moving average."""

import math


def cosine_schedule(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """Returns the learning rate's factor at a step: linear over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def average_decay(step: int, steps: int, decay: float) -> float:
    """Returns the decay of a moving average of the weights at a step: the constant `decay` if training is long.

    After `steps` steps, decay^steps of the average is still its initial value. If this is more than a tenth, the
    decay warms up as (1 + step) / (10 + step), the rule of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + step) / (10 + step)) if decay**steps > 0.1 else decay
