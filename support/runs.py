"""The folder of a run: config.json, log.jsonl, checkpoint.pt while it lasts, student.safetensors, result.json.

With a moving average of the weights, student_ema.safetensors too. Each file is written under a temporary name first.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from support.errors import UserError, not_finite
from support.weights import replacing

FILES = ("config.json", "log.jsonl", "checkpoint.pt", "student.safetensors", "student_ema.safetensors", "result.json")


def code_commit() -> str | None:
    """The commit of this project's code, with "-dirty" after it where files were changed; None outside of git."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        words = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # the commit, not a tag
        asked = subprocess.run(words, cwd=root, capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return asked.stdout.strip() or None


def read_json(path: Path, needed: set[str]) -> dict[str, Any]:
    """A file of a run, which has those keys."""
    try:
        content = json.loads(path.read_text())
        missing = needed - set(content)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again with --fresh") from error
    if missing:
        raise UserError(
            f"{path} has no {', '.join(sorted(missing))}: it is of another version; move it, or train --fresh"
        )
    return content


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a run; a `UserError` where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run: it has no config.json; train.py makes runs, below runs/ unless told")
    return read_json(path, {"settings", "student", "classes", "images", "steps", "teacher", "command"})


def is_finished(folder: str | Path) -> bool:
    result = Path(folder) / "result.json"  # the last file that a run writes, after the student
    return result.is_file() and result.with_name("student.safetensors").is_file()


def read_result(folder: str | Path) -> dict[str, Any]:
    """The result.json of a run; a `UserError` if it is not finished."""
    if not is_finished(folder):
        raise UserError(f"{folder} is not finished; go on with: {read_config(folder)['command']}")
    return read_json(Path(folder) / "result.json", {"top1"})


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The log.jsonl of a run: a dictionary an epoch."""
    path = Path(folder) / "log.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]  # an epoch each
        for line in lines:
            line["epoch"], line["loss"], line["transfer_loss"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged; train the run again with --fresh") from error
    if not lines:
        raise UserError(f"{folder} has not finished an epoch; there is nothing to draw yet")
    return lines


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """Adds the line of an epoch, in the place of those that a stopped run wrote after its last checkpoint."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []  # so far
    with replacing(path) as part:
        part.write_text("".join([*lines[: line["epoch"] - 1], json.dumps(line, allow_nan=False) + "\n"]))


def clear(folder: Path) -> None:
    """Forgets what is on disk of a run, and what was being written when it was killed."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        for left in filter(Path.is_dir, folder.glob(f".{name}.*")):  # an editor's file is not ours
            shutil.rmtree(left)


def stamps(folder: Path) -> list[tuple[str, int]]:
    """Names and times of what a folder holds, by which processes know that they see the same one."""
    return [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.glob("[!.]*"))]


class Checkpoint:
    """The file from which a stopped run goes on: the state of each of `parts`, by name, which have a `state_dict`."""

    # Nothing else needs keeping: all that is random follows from the numbers of epoch and step.
    def __init__(self, folder: Path, parts: dict[str, Any]) -> None:
        self.path, self.parts = folder / "checkpoint.pt", parts
        self.written_at, self.writing = time.perf_counter(), 0.0  # when, and how long it took

    def save_if_due(self, epochs: int, seconds: float) -> None:
        """Keeps the state after so many epochs, if writing takes less than a tenth of the time."""
        start = time.perf_counter()
        if start - self.written_at < 10 * self.writing:
            return
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with replacing(self.path) as part:
            try:
                torch.save({"epochs": epochs, "seconds": seconds, **states}, part)
            except RuntimeError as error:  # its word for a full disk
                raise OSError(str(error).splitlines()[0]) from error
        self.written_at = time.perf_counter()
        self.writing = self.written_at - start

    def check_finite(self, step: int) -> None:
        """Raises a `UserError` if the state, after that step, has numbers that are not finite: it is not to be kept."""
        for name, part in self.parts.items():
            for value in tree_leaves(part.state_dict()):
                if isinstance(value, Tensor) and not value.isfinite().all():
                    raise not_finite(f"the {name}'s numbers after step {step} are")

    def resume(self) -> tuple[int, float]:
        """Takes up the state of the file, if there is one; returns the epochs done, and the seconds that they took."""
        if not self.path.is_file():
            return 0, 0.0
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                if held[name]:  # a scaler's state is empty where the run had none before
                    part.load_state_dict(held[name])
            return held["epochs"], held["seconds"]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a damaged file makes torch say
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path} cannot be read ({reason}); start over with --fresh") from error
