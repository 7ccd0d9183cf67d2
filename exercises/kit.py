"""This module has what the laws share: random inputs, manners, and a way to plug a function into a transfer.

A law is a function `law(answer, draw)` that raises `Wrong(sentence)` if it does not hold. check.py prints its
docstring. `answer.name(...)` calls the learner's function, and `draw` makes the inputs.
"""

import copy
import inspect
import math
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from model import Routing, ViT, ViTConfig
from transfer import AttentionTransfer

SECONDS = 10.0  # A call of a learner's function may take this long, unless the laws have their own SECONDS.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


class Wrong(Exception):
    """A law does not hold. The text has a small counterexample in figures, what was expected, and what it means."""


class Manners(Wrong):
    """A call broke the rules for all functions, so no law looked at its result."""


class NotBegun(Exception):
    """The function is still the stub, which raises NotImplementedError."""


class TooSlow(BaseException):
    """A call took too long. It is not an Exception, so that a learner's `except Exception` does not catch it."""


# ---- Random inputs ---------------------------------------------------------------------------------------------------


class Draw:
    """Random inputs for a law. Levels 0, 1, 2, ... are ever larger. All sizes differ, but see `square`."""

    def __init__(self, seed: int, level: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.level, self.dtype = level, dtype
        # The four sizes differ, so if two dimensions are mixed up, the shape is wrong.
        self.B, self.H, self.d, self.N = 1 + level, 2 + level, 3 + level, 4 + level

    def square(self) -> "Draw":
        """Returns the same draw with N = H. What is meant for heads then also fits tokens, so no error is raised."""
        same = copy.copy(self)
        same.N = same.H
        return same

    def numbers(self, *shape: int) -> Tensor:
        """Draws from the standard normal distribution."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from 0 to 1."""
        return torch.rand(shape, generator=self.generator, dtype=self.dtype)

    def integer(self, low: int, high: int) -> int:
        """Draws x with low <= x < high."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def routing(
        self, B: int | None = None, H: int | None = None, N: int | None = None, d: int | None = None, bias: bool = False
    ) -> Routing:
        """Draws a routing: q and k (B, H, N, d) and, if asked, bias (H, N, N). Its sizes are the draw's by default."""
        B, H, N, d = B or self.B, H or self.H, N or self.N, d or self.d
        q, k = self.numbers(2, B, H, N, d)
        return Routing(q, k, self.numbers(H, N, N) if bias else None)

    def maps(self, count: int = 1, B: int | None = None, H: int | None = None, N: int | None = None) -> list[Tensor]:
        """Draws maps, each (B, H, N, N), whose rows sum to 1."""
        N = N or self.N
        return [self.numbers(B or self.B, H or self.H, N, N).softmax(-1) for _ in range(count)]


# ---- Comparing and showing -------------------------------------------------------------------------------------------


def close(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Tells whether all numbers agree. By default: to 1e-8 in float64, 1e-4 in float32, absolute plus relative."""
    tolerance = TOLERANCE[a.dtype] if tolerance is None else tolerance
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def worst(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Returns the index of the largest difference, for sentences."""
    apart = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
    return tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))


def shown(x: Tensor | float) -> str:
    """Writes numbers for sentences: 0.25, [0.25, 0.75], [[1, 0], [0, 1]]."""
    if isinstance(x, Tensor) and x.ndim:
        return f"[{', '.join(shown(part) for part in x)}]"
    x = 0.0 if abs(x) < 1e-12 else float(x)
    return f"{x:.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}"


def described(value: Any) -> str:
    """Describes a value for sentences, by its type and shape."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if hasattr(value, "_fields"):  # This is a named tuple, such as Routing.
        parts = (f"{name}: {described(part)}" for name, part in zip(value._fields, value, strict=True))
        return f"{type(value).__name__}({', '.join(parts)})".replace("a tensor ", "")
    if isinstance(value, tuple | list):
        parts = ", ".join(described(part) for part in value)
        return f"({parts})" if isinstance(value, tuple) else f"[{parts}]"
    if isinstance(value, ViTConfig):  # These fields say which token is which.
        return f"ViTConfig(grid={value.grid}, class_token={value.class_token}, registers={value.registers})"
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


# ---- Manners ---------------------------------------------------------------------------------------------------------


class Answer:
    """A learner's functions, guarded by manners: `answer.name(...)` calls `name` on copies of the arguments.

    `returns` has, for each of these functions, a function of the same arguments that makes an example of the result.
    The type, shape and dtype must match; a class stands for any instance. Raises `Wrong` if the call raised an error,
    took too long, changed its inputs, or returned something else, or numbers that are not finite (unless called with
    allow_infinite=True). Gradients pass through the copies; a torch.Generator is passed as it is.
    """

    def __init__(self, module: ModuleType, returns: dict[str, Callable], seconds: float = SECONDS) -> None:
        self.module, self.returns, self.seconds = module, returns, seconds
        self.blamed = {}  # This has the first complaint about each function, which is then not called again.

    def __getattr__(self, name: str) -> Callable:
        if name not in self.returns:
            raise AttributeError(name)

        def call(*args: Any, allow_infinite: bool = False) -> Any:
            if name in self.blamed:
                raise self.blamed[name]
            try:
                return self.call(name, args, allow_infinite)
            except Manners as error:
                self.blamed[name] = error
                raise

        return call

    def call(self, name: str, args: tuple, allow_infinite: bool) -> Any:
        function = getattr(self.module, name, None)
        if not callable(function):
            raise Manners(f"There is no function {name} in the file. The stub has its signature: keep that line.")
        parameters = list(inspect.signature(self.returns[name]).parameters)
        expected, given = self.returns[name](*args), [copied(value) for value in args]
        inputs = ", ".join(f"{word} = {described(value)}" for word, value in zip(parameters, args, strict=False))
        try:
            with limit(self.seconds):
                value = function(*given)
        except NotImplementedError:
            raise NotBegun(f"{name} is still the stub") from None
        except TooSlow:
            slow = f"{name} did not return within {self.seconds:g} s, given {inputs}. Is there an endless loop?"
            raise Manners(slow) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # This may be SystemExit, too.
            raise Manners(f"{name} raised {place_of(error, self.module)}, given {inputs}.") from None
        for parameter, before, after in zip(parameters, args, given, strict=False):
            if not unchanged(before, after):
                raise Manners(
                    f"{name} changed its input {parameter}, which its caller still needs. Compute a new tensor "
                    f"instead: avoid x[...] = ..., x += ... and functions whose names end in _."
                )
        if complaint := misfit(value, expected):
            raise Manners(f"{name} returned {complaint}, given {inputs}.")
        if not (allow_infinite or finite(value)):
            raise Manners(
                f"{name} returned numbers that are not finite (inf or nan), given {inputs}. Look for the log of 0, "
                f"exp of a large number, 1 / 0, 0 / 0 and inf - inf."
            )
        return value


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow in the code inside after so many seconds of computing, if the system can count them.

    Only this process counts, so a busy machine makes nobody too slow. examine.py ends code that catches TooSlow.
    """
    if not hasattr(signal, "SIGPROF"):
        yield
        return

    def stop(*_) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def copied(value: Any) -> Any:
    """Returns a copy through which gradients pass."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)
    return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, value)


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, nn.Module):
        before, after = before.state_dict(), after.state_dict()
    before, after = tree_leaves(before), tree_leaves(after)
    tensors = [(x, y) for x, y in zip(before, after, strict=False) if isinstance(x, Tensor)]
    # A number that was nan before may still be nan (equal_nan).
    return len(before) == len(after) and all(x.shape == y.shape and x.allclose(y, 0, 0, True) for x, y in tensors)


def misfit(value: Any, expected: Any) -> str:
    """Returns how a value differs from the expected example, as part of a sentence, or "" if it does not."""
    if isinstance(expected, type):
        return "" if isinstance(value, expected) else f"{described(value)} where a {expected.__name__} is expected"
    if isinstance(expected, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number else f"{described(value)} where a plain number is expected (for a tensor, use .item())"
    if described(value) != described(expected):
        return f"{described(value)} where {described(expected)} is expected"
    for found, example in zip(tree_leaves(value), tree_leaves(expected), strict=True):
        if isinstance(found, Tensor) and found.dtype != example.dtype:
            return f"{found.dtype} where {example.dtype} is expected: keep the dtype of the input"
    return ""


def finite(value: Any) -> bool:
    return all(torch.as_tensor(x).isfinite().all() for x in tree_leaves(value) if isinstance(x, Tensor | int | float))


def place_of(error: BaseException, module: ModuleType) -> str:
    """Describes an exception in one line, with its place in the learner's file."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__]
    return f"{text}, on line {own[-1].lineno} ({own[-1].line})" if own else f"{text}, before its first line"


def false_slope(total: Callable, inputs: dict[str, Tensor], draw: Draw) -> tuple[str, float, float] | None:
    """Finds the first input whose gradient is not that of the number `total(inputs)`, or None if all are right.

    Returns its name, its slope in a random direction, and the slope that a small step in that direction shows.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    number, gradients = total(leaves), [None] * len(leaves)
    if number.requires_grad:
        gradients = torch.autograd.grad(number, list(leaves.values()), allow_unused=True)
    step, tolerance = (1e-5, 1e-6) if draw.dtype is torch.float64 else (1e-2, 1e-2)
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        way = draw.numbers(*x.shape)
        with torch.no_grad():
            above, below = (total(inputs | {name: x.detach() + by * way}) for by in (step, -step))
        slope = 0 * above if gradient is None else (gradient * way).sum()
        expected = (above - below) / (2 * step)
        if not close(slope, expected, tolerance):
            return name, float(slope), float(expected)
    return None


# ---- What the experiments of exercises yield -------------------------------------------------------------------------


class Trial(NamedTuple):
    """Runs to train, as train.py would with these words, but `change` changes each transfer."""

    label: str
    words: list[str]
    change: Callable[[AttentionTransfer], Any] | None = None
    teacher: ViT | None = None  # It replaces the one that the words name.
    build_student: Callable | None = None  # It replaces train.py's.


class Finding(NamedTuple):
    """What was found without training. It is written as a run of its own, for marking."""

    name: str
    settings: dict
    result: dict


# ---- Running a law, and running a transfer ---------------------------------------------------------------------------


def hold(law: Callable, answer: Answer, seed: int, draws: int = 12, dtype: torch.dtype = torch.float64) -> None:
    """Runs one law on draws from small to large, so that the first counterexample is a small one."""
    for number in range(draws):
        torch.default_generator.manual_seed(seed)  # A learner may draw without a generator.
        law(answer, Draw(seed * 1009 + number, number // 2, dtype))  # The levels are 0, 0, 1, 1, 2, 2, ...


def plugged(transfer: AttentionTransfer, function: Callable[[int, Routing], Routing]) -> AttentionTransfer:
    """Changes a transfer: from now on, the teacher's routings go through `function(block, routing)`."""
    look = transfer.teacher_routings

    def teacher_routings(images: Tensor, drops: Tensor | None = None) -> dict[int, Routing]:
        return {block: function(block, routing) for block, routing in look(images, drops).items()}

    transfer.teacher_routings = teacher_routings
    return transfer
