"""One answer to one exercise: read in, tried on its laws, in a process of its own.

check.py asks for this, and run.py loads a learner's functions with it.
"""

import contextlib
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(path) for path in (ROOT, HERE) if str(path) not in sys.path]

from grade import tree_of  # noqa: E402
from kit import SECONDS, Answer, NotBegun, TooSlow, Wrong, hold, limit, place_of  # noqa: E402


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


# ---- The laws of one answer ------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What was found of one law: "ok", "WRONG", "not begun", or "waits" for another one."""

    law: str
    state: str
    sentence: str = ""  # of what is wrong; of one that waits, the law that it waits for


@dataclass
class Report:
    """What was found of one answer."""

    lines: list[Line] = field(default_factory=list)
    mistake: str = ""  # why no law could be tried
    printed: str = ""
    tree: str = ""  # the same for answers that differ only in names, comments and layout

    @property
    def state(self) -> str:
        states = {line.state for line in self.lines}
        if self.mistake or "WRONG" in states:
            return "WRONG"
        return "holds" if states == {"ok"} else "not begun"

    @property
    def share(self) -> float:
        """Of the laws, those that hold."""
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


class Printed(io.StringIO):
    """Keeps the beginning of what a learner's file prints."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, 1000 - self.tell())])
        return len(text)


def work(exercise: Exercise, path: Path, seed: int, result: Path) -> None:
    """Checks one answer in this process, which is a process for it alone, and writes the report to a file."""
    printed, report = Printed(), Report()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            report.tree = tree_of(path)
            report.lines = list(try_laws(exercise.laws, load(path), seed))
        except Wrong as error:
            report.mistake = str(error)
    report.printed = printed.getvalue()
    result.write_text(json.dumps(asdict(report)), "utf-8")
    os._exit(0)  # whatever the learner's file has left running


def examine(exercise: Exercise, path: Path, seed: int, seconds: float | None = None) -> Report:
    """Checks one answer in a process of its own, unless it is missing or still the stub; ends it after `seconds`."""
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
        words = [sys.executable, __file__, str(exercise.number), str(path.resolve()), str(seed), str(result)]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, **streams, cwd=elsewhere, env=environment, start_new_session=True)
        try:
            status = process.wait(seconds)
            found = json.loads(result.read_text("utf-8"))
            return Report(**found | {"lines": [Line(**line) for line in found["lines"]]})
        except subprocess.TimeoutExpired:
            return Report(mistake=f"It did not end within {seconds:g} s. Is there a loop without an end?")
        except (OSError, ValueError, KeyError, TypeError):  # it has gone without a report
            how = f"was killed by signal {-status}" if status < 0 else "ended its own process"
            return Report(
                mistake=f"It {how} before the laws were through. Take out exit(), and what needs much memory."
            )
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """Ends a process and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


if __name__ == "__main__":
    work(Exercise(int(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
