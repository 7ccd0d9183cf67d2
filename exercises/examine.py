"""This module loads the answer to an exercise and tests the laws on it, in a process of its own.

check.py uses it for that, and run.py loads a learner's functions with it.
"""

import contextlib
import importlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(path) for path in (ROOT, HERE) if str(path) not in sys.path]

from kit import SECONDS, Answer, NotBegun, TooSlow, Wrong, hold, limit, place_of  # noqa: E402

try:
    import resource
except ImportError:  # Windows has no such module.
    resource = None

LONGEST = 100_000  # At most this many letters of a submitted file are read.
MEMORY = 2 * 1024**3  # The process of one answer may take this many bytes.
PATIENCE = 4  # A process may exist for this many times its computing time, as it may sleep or wait for a core.


class Exercise:
    """An exercise, as its files describe it. All other code treats all exercises alike."""

    def __init__(self, number: int) -> None:
        self.number, self.laws = number, importlib.import_module(f"laws.e{number}")
        head = re.fullmatch(r"(.+) \((.+), (\d+) points\)", self.laws.__doc__.splitlines()[0])
        self.title, self.time, self.points = head[1], head[2], int(head[3])
        self.call_seconds = getattr(self.laws, "SECONDS", SECONDS)  # This limits one call of a learner's function.
        self.stub, self.page = HERE / f"e{number}.py", HERE / f"e{number}.md"


def exercises() -> dict[int, Exercise]:
    numbers = sorted(int(path.stem[1:]) for path in (HERE / "laws").glob("e*.py"))
    return {number: Exercise(number) for number in numbers}


def beginning(path: Path) -> str:
    """Returns the text of a file, only its beginning if it is very long, or "" if it is not a file."""
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(LONGEST)


# ---- The laws of one answer ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """The result of one law: "ok", "WRONG", "not begun", or "waits" for another one."""

    law: str
    state: str
    sentence: str = ""  # This says what is wrong, or for which law this one waits.


class Report(NamedTuple):
    """The results of one answer."""

    lines: list[Line] = []
    mistake: str = ""  # This says why no law could be tested.
    printed: str = ""

    @property
    def state(self) -> str:
        states = {line.state for line in self.lines}
        if self.mistake or "WRONG" in states:
            return "WRONG"
        return "holds" if states == {"ok"} else "not begun"

    @property
    def share(self) -> float:
        """The share of the laws that hold."""
        return sum(line.state == "ok" for line in self.lines) / max(1, len(self.lines))


def load(path: Path) -> types.ModuleType:
    """Loads a learner's file as a module. Raises `Wrong` if this fails."""
    module = types.ModuleType("answer")
    module.__file__, sys.modules["answer"] = str(path), module
    try:
        with limit(SECONDS):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise Wrong(
            f"The file does not parse: {error.msg}, on line {error.lineno} ({(error.text or '').strip()[:100]})."
        ) from None
    except TooSlow:
        raise Wrong(f"The file took more than {SECONDS:g} s to load. What runs outside of functions?") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # This may be SystemExit, too.
        raise Wrong(f"The file raised {place_of(error, module)}, when it was loaded.") from None
    return module


def try_laws(laws: types.ModuleType, module: types.ModuleType, seed: int, **options) -> Iterator[Line]:
    """Tests one law after another. A law waits if one that it needs does not hold, or if its call failed before."""
    answer = Answer(module, laws.RETURNS, getattr(laws, "SECONDS", SECONDS))
    options = {"draws": getattr(laws, "DRAWS", 12)} | options
    blame, told = {}, {}  # These map a law to the one that it waits for, and a sentence to the law that raised it.
    for law in laws.LAWS:
        name = law.__doc__.strip()
        failed = [need for need in getattr(law, "needs", []) if need in blame]
        try:
            if failed:
                blame[law] = blame[failed[0]]
                yield Line(name, "waits", blame[law])
                continue
            hold(law, answer, seed, **options)
            yield Line(name, "ok")
        except (NotBegun, Wrong) as error:
            blame[law] = name if type(error) is Wrong else told.setdefault(str(error), name)
            state = "not begun" if isinstance(error, NotBegun) else "WRONG"
            yield Line(name, state, str(error)) if blame[law] == name else Line(name, "waits", blame[law])
        except Exception as error:
            blame[law] = name
            yield Line(
                name, "WRONG", f"This law could not use what your function returned ({place_of(error, module)})."
            )


def work(exercise: Exercise, path: Path, seed: int, seconds: float, result: Path) -> None:
    """Checks one answer in this process, which runs nothing else, and writes the report to a file."""
    if resource:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(spent.ru_utime + spent.ru_stime + seconds)
        for kind, most in {resource.RLIMIT_CPU: seconds, resource.RLIMIT_DATA: MEMORY}.items():
            with contextlib.suppress(ValueError, OSError):  # The system may already have a stricter limit.
                resource.setrlimit(kind, (most, most + 1))
    printed, lines, mistake = io.StringIO(), [], ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            lines = list(try_laws(exercise.laws, load(path), seed))
        except Wrong as error:
            mistake = str(error)
    result.write_text(json.dumps([lines, mistake, printed.getvalue()[:1000]]), "utf-8")
    os._exit(0)  # This ends whatever the learner's file has left running.


def examine(exercise: Exercise, path: Path, seed: int, seconds: float | None = None) -> Report:
    """Checks one answer in a process of its own, unless it is missing or still the stub.

    The process is ended after `seconds` of computing, however busy the machine is.
    """
    seconds = seconds or 12 * exercise.call_seconds
    if not path.is_file():
        return Report()
    try:
        if path.stat().st_size > LONGEST:
            return Report(mistake=f"The file has more than {LONGEST:,} bytes.")
        if path.read_bytes().split() == exercise.stub.read_bytes().split():
            return Report()
    except OSError as error:
        return Report(mistake=f"The file cannot be read: {error.strerror}.")
    with tempfile.TemporaryDirectory() as elsewhere:
        result = Path(elsewhere) / "report.json"
        words = [sys.executable, __file__, str(exercise.number), str(path.resolve()), str(seed), str(seconds)]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*words, str(result)], **streams, cwd=elsewhere, env=environment, start_new_session=True
        )
        too_long = Report(mistake=f"It did not finish within {seconds:g} s. Is there an endless loop?")
        try:
            status = process.wait(PATIENCE * seconds)
            return too_long if resource and status == -signal.SIGXCPU else read_report(exercise, result)
        except subprocess.TimeoutExpired:
            return too_long
        except Exception:  # There is no report, or the learner's file has written one of its own.
            how = f"was killed by signal {-status}" if status < 0 else "ended its own process"
            return Report(mistake=f"It {how} before all laws were tested. Remove exit(), and what needs much memory.")
        finally:
            end(process)


def read_report(exercise: Exercise, path: Path) -> Report:
    """Reads the report that a process has written. Raises an exception unless it has that exercise's laws."""
    lines, mistake, printed = json.loads(beginning(path))
    lines = [Line(*map(str, line)) for line in lines]
    if lines and [line.law for line in lines] != [law.__doc__.strip() for law in exercise.laws.LAWS]:
        raise ValueError("the report has other laws")
    return Report(lines, str(mistake), str(printed))


def end(process: subprocess.Popen) -> None:
    """Ends a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


if __name__ == "__main__":
    number, path, seed, seconds, result = sys.argv[1:]
    work(Exercise(int(number)), Path(path), int(seed), float(seconds), Path(result))
