"""A run's folder has config.json, log.jsonl, checkpoint.pt (until the run ends), student.safetensors and result.json.

A run with a moving average of the weights also has student_ema.safetensors. config.json holds all that tables, or a
command that resumes the run, need to know later. Each file is first written under a temporary name.
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from support.arguments import names_of
from support.errors import UserError, not_finite
from support.files import fcntl, replacing
from support.processes import Processes

FILES = ("config.json", "log.jsonl", "checkpoint.pt", "student.safetensors", "student_ema.safetensors", "result.json")


# ---- What a run is ---------------------------------------------------------------------------------------------------


def describe(settings: Any, usual: Any, published: dict, family: str, place: list) -> dict:
    """Returns the name of a run, and what tables must know about it, for its config.json.

    `usual` are the same settings without variants. `published` is the recipe that the run follows, if any. `family` is
    the title of the teacher's family. `place` has the numbers of family and teacher in the registry.
    """
    ours, plain = asdict(settings), asdict(usual)
    teacher, method = teacher_title(settings), settings.method or settings.mode
    student = [] if settings.student == "standard" else [settings.student]
    variants = [f"{name}={ours[name]}" for name in names_of(settings, "variant") if ours[name] != plain[name]]
    words = [teacher.replace(" ", ""), data_title(settings).rstrip("/"), method, *student, *variants]
    title = "-".join(words).replace(",", "+").encode()[:200].decode("utf-8", "ignore")  # Disks allow 255 bytes.
    # A run does not depend on the machine, nor on where its images and its teacher's weights are stored.
    free = {"data", "weights", *names_of(settings, "machine")}
    made_of = {name: value for name, value in ours.items() if name not in free}

    # Runs share a table if their values agree, or if their second entries do. Each published method has its own recipe,
    # and "as published" agrees with itself.
    compared = names_of(settings, "data") + names_of(settings, "recipe")
    conditions = {name: [ours[name], ours[name]] for name in compared}
    conditions["data"] = [data_title(settings)] * 2
    for name in names_of(settings, "recipe"):
        if published and ours[name] == published.get(name, getattr(type(settings), name)):
            conditions[name][1] = "as published"
    return {
        "name": f"{title}-seed{settings.seed}",
        "made_of": {"data": data_title(settings), **made_of},
        "table": {
            "place": place,
            "family": family,
            # A file does not hold all that defines a teacher, so tables say if the file was the user's own.
            "title": teacher if settings.weights in (None, "random") else f"{teacher} (own file)",
            "conditions": conditions,
            "column": " ".join([*student, method, *variants]),
        },
    }


def data_title(settings: Any) -> str:
    """Returns the name of the data set, or of the folder of images with a slash after it, in valid UTF-8."""
    name = os.fsencode(Path(settings.data).name).decode("utf-8", "replace")
    return f"{name}/" if os.sep in settings.data else name


def teacher_title(settings: Any) -> str:
    """Returns the teacher's name, marked if its weights are random or from another pretraining seed."""
    if settings.weights == "random":
        return f"{settings.teacher} (random)"
    return f"{settings.teacher} (seed {settings.teacher_seed})" if settings.teacher_seed else settings.teacher


def is_done(folder: Path, asked: dict) -> bool:
    """Tells whether the folder holds this run and it is finished. Raises a `UserError` if it holds a different run.

    `asked` is what config.json would list as `made_of` if the run began now, or a part of it.
    """
    if not (folder / "config.json").is_file():
        return False
    held, finished = read_config(folder)["made_of"], is_finished(folder)
    held["precision"] = str(held.get("precision")).split(", then ")[-1]  # This is the one with which it ended.
    # A stopped run may resume in another precision. In a finished one, the number of processes changed only rounding.
    free = {"threads", "processes" if finished else "precision"}
    names = [name for name in asked if name not in free and held.get(name) != asked[name]]
    if names:
        differ = "; ".join(f"{name} {held.get(name)} there and {asked[name]} here" for name in names)
        remedy = "start over with --fresh, or choose another --out"
        raise UserError(f"{folder} holds a different run: {differ}; {remedy}")
    return finished


@contextmanager
def lock(folder: Path, processes: Processes) -> Iterator[bool]:
    """Yields whether this command may train the run in this folder. If so, no other command may until the end.

    The system releases a lock when its process ends for any reason. On most disks that machines share, locks hold for
    all machines. Where there are no locks, as on Windows, every command may train the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    is_taken = False
    with open(path, "ab") as file:
        if processes.main and fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_taken = os.fstat(file.fileno()).st_nlink == 0  # Its holder has removed it in the meantime.
            except OSError as error:
                is_taken = error.errno in (errno.EACCES, errno.EAGAIN)  # Otherwise the disk has no locks.
        may = not processes.sum(torch.tensor(float(is_taken)))
        try:
            yield may
        finally:
            if may and processes.main:
                path.unlink(missing_ok=True)


@contextmanager
def begin(folder: Path, config: dict, processes: Processes) -> Iterator[bool]:
    """Writes config.json, and keeps other commands away from the run. Yields whether there is something to train.

    There is nothing if the run is finished, or if another command is training it. Raises a `UserError` if the folder
    holds a different run. If the run resumes in another precision, or with other threads, config.json lists both.
    """
    with lock(folder, processes) as may:
        finished = may and is_done(folder, config["made_of"])
        if processes.main and (finished or not may):
            print(f"{folder.name}: skipped; {'it is finished' if finished else 'another command is training it'}")
        elif processes.main:
            made_of = config["made_of"]
            held = read_config(folder)["made_of"] if (folder / "config.json").is_file() else made_of
            for name in ("precision", "threads"):
                before = held.get(name, "unknown")
                if before.split(", then ")[-1] != made_of[name]:
                    made_of[name] = f"{before}, then {made_of[name]}"
            write_json(folder / "config.json", config)
        processes.check_same(partial(stamps, folder), folder)
        yield may and not finished


def code_commit() -> str | None:
    """Returns the commit of this project's code, with "-dirty" after it if files were changed, or None outside git."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # A tag must not replace the commit.
    try:
        asked = subprocess.run(words, cwd=root, capture_output=True, text=True)
    except OSError:  # git is not installed.
        return None
    return asked.stdout.strip() or None


# ---- Its files -------------------------------------------------------------------------------------------------------


def read_json(path: Path, needed: set[str]) -> dict:
    """Reads a JSON file of a run and checks that it has those keys."""
    try:
        content = json.loads(path.read_text("utf-8"))
        missing = needed - set(content)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); train the run again with --fresh") from error
    if missing:
        raise UserError(
            f"{path} has no {', '.join(sorted(missing))}: it comes from another version; move it, or train with --fresh"
        )
    return content


def read_config(folder: str | Path) -> dict:
    """Reads the config.json of a run. Raises a `UserError` if there is none."""
    path = Path(folder, "config.json")
    if not path.is_file():
        raise UserError(f"{folder} is not a run: it has no config.json; train.py makes runs, in runs/ by default")
    return read_json(path, {"settings", "made_of", "table", "student", "classes", "command", "versions"})


def read_true_config(folder: str | Path) -> dict:
    """Reads the config.json of a run of train.py. Raises a `UserError` if the run is from an exercise."""
    config = read_config(folder)
    if "exercise" in config:
        raise UserError(f"{folder} was trained with a learner's function; without it the student is a different model")
    return config


def read_settings(folder: str | Path, kind: type) -> Any:
    """Reads the settings of a run, as an instance of the dataclass `kind`."""
    try:
        return kind(**read_config(folder)["settings"])
    except TypeError as error:
        raise UserError(
            f"{folder} comes from another version of this project ({error}); move it, or train with --fresh"
        ) from error


def is_finished(folder: str | Path) -> bool:
    result = Path(folder, "result.json")  # This is the last file that a run writes.
    return result.is_file() and result.with_name("student.safetensors").is_file()


def read_result(folder: str | Path) -> dict:
    """Reads the result.json of a run. Raises a `UserError` if the run is not finished."""
    if not is_finished(folder):
        raise UserError(f"{folder} is not finished; resume with: {read_config(folder)['command']}")
    return read_json(Path(folder, "result.json"), {"top1"})


def read_log(folder: str | Path) -> list:
    """Reads the log.jsonl of a run: a dictionary for each epoch."""
    path = Path(folder, "log.jsonl")
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for line in lines:
            line["epoch"], line["loss"], line["transfer_loss"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged; train the run again with --fresh") from error
    if not lines:
        raise UserError(f"{folder} has not finished an epoch; there is nothing to draw yet")
    return lines


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def append_log(folder: Path, line: dict) -> None:
    """Adds the line of an epoch, and removes lines that a stopped run wrote after its last checkpoint."""
    path = folder / "log.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    with replacing(path) as temporary:
        temporary.write_text("".join(lines[: line["epoch"] - 1]) + json.dumps(line, allow_nan=False) + "\n", "utf-8")


def write_student(path: Path, student: nn.Module) -> None:
    with replacing(path) as temporary:
        save_model(student, str(temporary))


def clear(folder: Path, processes: Processes) -> None:
    """Deletes the files of a run, and temporary ones left when it was killed. A run in training is left alone."""
    with lock(folder, processes) as may:
        for name in FILES if may and processes.main else ():
            (folder / name).unlink(missing_ok=True)
            for left in filter(Path.is_dir, folder.glob(f".{name}.*")):  # A file with such a name is from an editor.
                shutil.rmtree(left)


def stamps(folder: Path) -> list[tuple[str, int]]:
    """Lists the names and times of a folder's files, by which processes check that they see the same folder."""
    return [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.glob("[!.]*"))]


class Checkpoint:
    """The file from which a stopped run resumes. It holds the `state_dict` of each of `keepers`, by name.

    Nothing else needs to be saved, since the numbers of epoch and step determine everything random.
    """

    def __init__(self, folder: Path, keepers: dict) -> None:
        self.path, self.keepers = folder / "checkpoint.pt", keepers

    def save(self, epochs: int, seconds: float) -> None:
        """Saves the state after this many epochs and seconds of training."""
        states = {name: keeper.state_dict() for name, keeper in self.keepers.items()}
        with replacing(self.path) as temporary:
            try:
                torch.save({"epochs": epochs, "seconds": seconds, **states}, temporary)
            except RuntimeError as error:  # This is how torch reports a full disk.
                raise OSError(errno.ENOSPC, str(error).splitlines()[0]) from error

    def check_finite(self, step: int) -> None:
        """Raises a `UserError` if the state after this step has numbers that are not finite, so it is not saved."""
        for name, keeper in self.keepers.items():
            for value in tree_leaves(keeper.state_dict()):
                if isinstance(value, Tensor) and not value.isfinite().all():
                    raise not_finite(f"the {name}'s numbers after step {step} are")

    def resume(self) -> tuple[int, float]:
        """Loads the state from the file, if there is one. Returns the epochs done and the seconds that they took."""
        if not self.path.is_file():
            return 0, 0.0
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, keeper in self.keepers.items():
                if held[name]:  # The state of a scaler is empty if the run had none before.
                    keeper.load_state_dict(held[name])
            return held["epochs"], held["seconds"]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # A damaged file can make torch raise anything.
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path} cannot be read ({reason}); start over with --fresh") from error
