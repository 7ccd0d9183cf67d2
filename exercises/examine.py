"""One answer to one exercise: read in, tried on its laws, in a process of its own.

check.py asks for this, and run.py loads a learner's functions with it.
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

LONGEST = 100_000  # No more letters of a file that was handed in are read.
MEMORY = 2 * 1024**3  # The process of one answer may take so many bytes.
PATIENCE = 4  # A process may exist for so many times the seconds that it may compute: it may sleep, or wait for a core.


class Exercise:
    """What the files of an exercise say. Nothing else here knows one exercise from another."""

    def __init__(self, number: int) -> None:
        self.number, self.laws = number, importlib.import_module(f"laws.e{number}")
        head = re.fullmatch(r"(.+) \((.+), (\d+) points\)", self.laws.__doc__.splitlines()[0])
        self.title, self.time, self.points = head[1], head[2], int(head[3])
        self.call_seconds = getattr(self.laws, "SECONDS", SECONDS)  # for one call of a learner's function
        self.stub, self.page = HERE / f"e{number}.py", HERE / f"e{number}.md"


def exercises() -> dict[int, Exercise]:
    numbers = sorted(int(path.stem[1:]) for path in (HERE / "laws").glob("e[0-9].py"))
    return {number: Exercise(number) for number in numbers}


def beginning(path: Path) -> str:
    """Returns the text of a file, or its first letters if it is very long, or "" if it is no file."""
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(LONGEST)


# ---- The laws of one answer ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """What was found of one law: "ok", "WRONG", "not begun", or "waits" for another one."""

    law: str
    state: str
    sentence: str = ""  # This says what is wrong, or for which law this one waits.


class Report(NamedTuple):
    """What was found of one answer."""

    lines: list[Line] = []
    mistake: str = ""  # This says why no law could be tried.
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
    """A learner's file as a module; `Wrong` where it cannot be read in."""
    module = types.ModuleType("answer")
    module.__file__, sys.modules["answer"] = str(path), module
    try:
        with limit(SECONDS):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise Wrong(
            f"The file does not parse: {error.msg}, in line {error.lineno} ({(error.text or '').strip()})."
        ) from None
    except TooSlow:
        raise Wrong(f"The file was not read in within {SECONDS:g} s. What runs outside of functions?") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        raise Wrong(f"The file raised {place_of(error, module)}, when it was read in.") from None
    return module


def try_laws(laws: types.ModuleType, module: types.ModuleType, seed: int, **options) -> Iterator[Line]:
    """Tries one law after another. A law waits if one that it needs does not hold, or if the call itself went wrong."""
    answer = Answer(module, laws.RETURNS, getattr(laws, "SECONDS", SECONDS))
    options = {"draws": getattr(laws, "DRAWS", 12)} | options
    blame, told = {}, {}  # by law: whom it waits for; by sentence: under which law it was told
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
                name, "WRONG", f"This law could not be computed from what came back ({place_of(error, module)})."
            )


def work(exercise: Exercise, path: Path, seed: int, seconds: float, result: Path) -> None:
    """Checks one answer in this process, which is a process for it alone, and writes the report to a file."""
    if resource:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(spent.ru_utime + spent.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
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

    The process is ended when it has computed for `seconds`, however busy the machine is.
    """
    seconds = seconds or 12 * exercise.call_seconds
    if not path.is_file():
        return Report()
    try:
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
        too_long = Report(mistake=f"It did not end within {seconds:g} s. Is there a loop without an end?")
        try:
            status = process.wait(PATIENCE * seconds)
            return too_long if resource and status == -signal.SIGXCPU else read_report(exercise, result)
        except subprocess.TimeoutExpired:
            return too_long
        except Exception:  # There is no report, or the learner's file has written one of its own.
            how = f"was killed by signal {-status}" if status < 0 else "ended its own process"
            return Report(
                mistake=f"It {how} before the laws were through. Take out exit(), and what needs much memory."
            )
        finally:
            end(process)


def read_report(exercise: Exercise, path: Path) -> Report:
    """Returns the report that a process has written. Raises an exception unless it is one of that exercise's laws."""
    lines, mistake, printed = json.loads(beginning(path))
    lines = [Line(*map(str, line)) for line in lines]
    if lines and [line.law for line in lines] != [law.__doc__.strip() for law in exercise.laws.LAWS]:
        raise ValueError("these are other laws")
    return Report(lines, str(mistake), str(printed))


def end(process: subprocess.Popen) -> None:
    """Ends a process and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


if __name__ == "__main__":
    number, path, seed, seconds, result = sys.argv[1:]
    work(Exercise(int(number)), Path(path), int(seed), float(seconds), Path(result))
