"""What changes over a training by a rule: the learning rate, and the decay of a moving average."""

import math


def cosine_schedule(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise over `warmup` steps, then half a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def average_decay(step: int, steps: int, decay: float) -> float:
    """The decay of a moving average of the weights at a step, which is the constant `decay` in a long training.

    After so many steps, decay^steps of an average is still its start. If that is more than a tenth, the decay warms up
    as (1 + step) / (10 + step), which is the rule of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + step) / (10 + step)) if decay**steps > 0.1 else decay
