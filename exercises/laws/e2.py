"""the other divergence, by hand (45 min, 8 points)"""

import math

import torch
from kit import Answer, Draw, Wrong, close, shown, worst
from torch import Tensor

RETURNS = {"reverse_kl": lambda log_p, logits: (logits[..., 0], logits)}


def rows(draw: Draw, *shape: int) -> tuple[Tensor, Tensor]:
    """Returns a random log p and random logits, both (..., N)."""
    return draw.numbers(*shape).log_softmax(-1), draw.numbers(*shape)


def equal_rows_cost_nothing(answer: Answer, draw: Draw) -> None:
    """if both rows are the same, the value is 0"""
    log_p, _ = rows(draw, draw.B, draw.N)
    value, _ = answer.reverse_kl(log_p, log_p)
    if not close(value, value * 0):
        (b,) = worst(value, value * 0)
        raise Wrong(
            f"p is {shown(log_p[b].exp())}, the logits are log p, so both rows are the same, but the value is "
            f"{shown(value[b])} instead of 0. (The entropy of p is {shown(-(log_p[b].exp() * log_p[b]).sum())}: is "
            "that what you have? A divergence is a cross-entropy minus an entropy.)"
        )


def logits_are_logits(answer: Answer, draw: Draw) -> None:
    """a number added to all logits of a row changes neither value nor slope"""
    log_p, logits = rows(draw, draw.B, draw.N)
    if not answer.reverse_kl(log_p, logits)[1].count_nonzero():
        raise Wrong("Two random rows differ, and all of your slopes are 0: with these, no student would ever learn.")
    shift = 1.0 + draw.uniform(draw.B)
    for before, after in zip(
        answer.reverse_kl(log_p, logits), answer.reverse_kl(log_p, logits + shift[:, None]), strict=True
    ):
        if not close(after, before):
            place = worst(after, before)
            raise Wrong(
                f"All logits of a row grew by {shown(shift[place[0]])}, and the "
                f"{'slope' if after.ndim > 1 else 'value'} went from {shown(before[place])} to {shown(after[place])}. "
                "softmax ignores what is added to a whole row: logits are not yet logarithms of shares. Which "
                "function turns them into these?"
            )


def one_of_two_peaks(answer: Answer, draw: Draw) -> None:
    """a student on one of two equal peaks pays log 2"""
    peaks = torch.full((draw.N,), -60.0, dtype=draw.dtype)
    peaks[:2] = 0.0
    logits = torch.full((draw.N,), -60.0, dtype=draw.dtype)
    logits[draw.integer(0, 2)] = 0.0
    value, _ = answer.reverse_kl(peaks.log_softmax(-1), logits)
    if not close(value, value * 0 + math.log(2)):
        raise Wrong(
            f"p has two peaks of 0.5, the student has its whole row on one of them, and the value is {shown(value)} "
            "instead of log 2 = 0.693. The forward divergence asks the student to cover every peak of p, and costs "
            "29.3 here; the reverse one only asks it not to look where p does not. Which of the two rows should "
            "weight the logarithms?"
        )


def no_share_is_too_small(answer: Answer, draw: Draw) -> None:
    """value and slope are finite and right if a share is exp(-10,000)"""
    small, large = torch.zeros(2, draw.N, dtype=draw.dtype).unbind()
    small[0] = -10_000.0  # One token has almost nothing, and the others share the rest.
    for log_p, logits, expected, who in (
        (small, large, 10_000 / draw.N - math.log(draw.N / (draw.N - 1)), "p"),
        (large, small, math.log(draw.N / (draw.N - 1)), "The student"),
    ):
        value, slope = answer.reverse_kl(log_p.log_softmax(-1), logits, allow_infinite=True)
        if not (value.isfinite() and slope.isfinite().all()):
            raise Wrong(
                f"{who} gives token 0 a share of exp(-10,000) and the {draw.N - 1} others equal shares: the value is "
                f"{shown(value)} and the slope {shown(slope)}, but the value should be {shown(expected)}. -10,000 is "
                "an ordinary number, but exp(-10,000) is 0 in any float, and log 0 is -inf: use logarithms, and take "
                "exp last."
            )
        if not close(value, value * 0 + expected):
            raise Wrong(
                f"{who} gives token 0 a share of exp(-10,000) and the {draw.N - 1} others equal shares: the value is "
                f"{shown(value)}, but should be {shown(expected)}. A small number inside a logarithm, or a clamp, "
                "keeps it finite, but changes it: use logarithms, and take exp last."
            )


def rows_are_apart(answer: Answer, draw: Draw) -> None:
    """each row is independent, whatever dimensions come before it"""
    for shape in ((draw.N,), (draw.N, draw.N), (draw.B, draw.H, draw.N, draw.N)):
        log_p, logits = rows(draw, *shape)
        values, slopes = answer.reverse_kl(log_p, logits)
        place = tuple(draw.integer(0, size) for size in shape[:-1])
        value, slope = answer.reverse_kl(log_p[place], logits[place])
        if not (close(values[place], value) and close(slopes[place], slope)):
            raise Wrong(
                f"Inputs {shape}: the row at {list(place)} has the value {shown(values[place])} and the slope "
                f"{shown(slopes[place])} among the others, but {shown(value)} and {shown(slope)} alone. Sums and "
                "softmax go over the last dimension, and a value (...) fits a row (..., N) as value[..., None]."
            )


def slopes_sum_to_nothing(answer: Answer, draw: Draw) -> None:
    """the slopes of a row sum to 0"""
    log_p, logits = rows(draw, draw.B, draw.N)
    value, slope = answer.reverse_kl(log_p, logits)
    total = slope.sum(-1)
    if not close(total, total * 0):
        (b,) = worst(total, total * 0)
        raise Wrong(
            f"A row of slopes {shown(slope[b])} sums to {shown(total[b])}, and the value is {shown(value[b])}. Adding "
            "a constant to all logits changes nothing, so a row's slopes sum to 0. Which part of the derivative of "
            "softmax subtracts the mean?"
        )


def slope_is_the_values(answer: Answer, draw: Draw) -> None:
    """the slope is the derivative of the value, as small steps of the logits show"""
    log_p, logits = rows(draw, draw.N)
    step, tolerance = (1e-5, 1e-7) if draw.dtype is torch.float64 else (1e-2, 2e-3)
    steps = step * torch.eye(draw.N, dtype=draw.dtype)  # Each row moves one logit.
    above, _ = answer.reverse_kl(log_p.expand_as(steps), logits + steps)
    below, _ = answer.reverse_kl(log_p.expand_as(steps), logits - steps)
    quotient = (above - below) / (2 * step)
    _, slope = answer.reverse_kl(log_p, logits)
    if close(slope, quotient, tolerance):
        return
    (n,) = worst(slope, quotient)
    found = f"For logit {n}, the derivative of the value is {shown(quotient[n])}, but your slope is {shown(slope[n])}."
    if close(slope, -quotient, tolerance):
        raise Wrong(f"{found} Yours has the wrong sign, so training would increase the loss.")
    if close(slope, logits.softmax(-1) - log_p.exp(), tolerance):
        raise Wrong(
            f"{found} Yours is s - p, the slope of the cross-entropy. Its weights p are constant; here the weights are "
            "s, and they change with the logits."
        )
    raise Wrong(
        f"{found} Both s and log s depend on every logit: write the value as a sum of s_j t_j, and ask how each s_j "
        f"and each t_j changes when logit {n} grows."
    )


def extreme_slopes(answer: Answer, draw: Draw) -> None:
    """the slope is that of the value where a share of p is exp(-10,000), too"""
    log_p, logits = torch.zeros(2, draw.N, dtype=torch.float64).unbind()
    log_p[0] = -10_000.0
    log_p, step = log_p.log_softmax(-1), 1e-4 * torch.eye(draw.N, dtype=torch.float64)[0]
    above, below = (answer.reverse_kl(log_p, logits + by * step)[0] for by in (1, -1))
    quotient, slope = (above - below) / 2e-4, answer.reverse_kl(log_p, logits)[1][0]
    if not close(slope, quotient, 1e-4):
        raise Wrong(
            f"p gives token 0 a share of exp(-10,000) and the {draw.N - 1} others equal shares: a unit of logit 0 "
            f"changes the value by {shown(quotient)}, and your slope there is {shown(slope)}. The slope needs the same "
            "care as the value: no small number inside a logarithm, and no clamp."
        )


def is_done_by_hand(answer: Answer, draw: Draw) -> None:
    """it works without autograd"""
    with torch.inference_mode():
        try:
            answer.reverse_kl(*rows(draw, draw.N))
        except Wrong as error:
            raise Wrong(
                f"Under torch.inference_mode(), where autograd records nothing, it fails: {error} Work out the slope "
                "on paper: then it costs one line and no graph."
            ) from None


slope_is_the_values.needs = [equal_rows_cost_nothing, slopes_sum_to_nothing]
slopes_sum_to_nothing.needs = one_of_two_peaks.needs = [equal_rows_cost_nothing, logits_are_logits]
no_share_is_too_small.needs = [one_of_two_peaks]
is_done_by_hand.needs = [slope_is_the_values]
extreme_slopes.needs = [slope_is_the_values, no_share_is_too_small]

LAWS = [
    logits_are_logits,
    equal_rows_cost_nothing,
    one_of_two_peaks,
    no_share_is_too_small,
    rows_are_apart,
    slopes_sum_to_nothing,
    slope_is_the_values,
    extreme_slopes,
    is_done_by_hand,
]

HINTS = [
    "With s = softmax(logits) and t = log s - log p the value is the sum of s_j t_j. Begin with log_softmax.",
    "If logit i changes, the derivative of s_i is s_i (1 - s_i), and that of another s_j is -s_j s_i. For their "
    "logarithms, it is 1 - s_i and -s_i.",
    "What comes from log s cancels. The slope that is left is s_i times the difference of t_i from a mean of t. Which "
    "mean?",
]
