"""This module finds, downloads and reads weight files."""

import argparse
import http.client
import json
import os
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from support.errors import UserError
from support.files import check_name

HUB = "https://huggingface.co"

# ---- Places, and downloading -----------------------------------------------------------------------------------------


def cache_path(name: str) -> Path:
    """Returns the path at which a teacher's file is kept."""
    return Path(torch.hub.get_dir(), "attention_transfer", f"{name}.safetensors")


def in_hub_cache(url: str) -> Path | None:
    """Returns the path of a file of the hub in the cache of the hub's own client, or None if it is not cached."""
    if not url.startswith(HUB):
        return None
    owner, name, file = url.removeprefix(HUB + "/").replace("/resolve/main/", "/").split("/")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    found = cache.glob(f"models--{owner}--{name}/snapshots/*/{file}")
    return max((path for path in found if path.is_file()), key=os.path.getmtime, default=None)


def address(url: str) -> str:
    """Returns the address to download from. It is on a mirror of the hub if the variable HF_ENDPOINT names one."""
    return url.replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))


def download(url: str, path: Path, otherwise: str) -> None:
    """Downloads a file to `path`. A truncated download is noticed only when the file is read.

    Every network problem raises a `UserError` that ends with `otherwise`, which says how else to get the file.
    """
    if url.startswith(address(HUB)) and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"HF_HUB_OFFLINE forbids downloading {url}; {otherwise}")
    socket.setdefaulttimeout(60)  # After this many seconds without a byte, torch's download fails instead of hanging.
    try:
        urllib.request.Request(url)  # An invalid address fails here, before torch.hub creates a file.
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"cannot download {url} ({reason}); {otherwise}") from error


# ---- Reading ---------------------------------------------------------------------------------------------------------

# These are the types of numpy's plain numbers. torchvision needs numpy, so it is installed.
NUMBERS = [type(np.dtype(letter)) for letter in "?bBhHiIlLqQefd"]
SCALAR = np.float64(0).__reduce__()[0]  # A pickle makes a numpy number with this function.

# Besides tensors, pickles may hold settings and numpy numbers, because no code can hide in them.
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *NUMBERS,
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
]


def is_safetensors(path: Path) -> bool:
    """Tells whether a file begins like a safetensors file: 8 bytes for the header's length, then the header in JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def split_word(path: Path) -> tuple[Path, str]:
    """Splits FILE:WORD into the file and the word. A path without a word has the word ""."""
    name, _, word = str(path).rpartition(":")
    return (Path(name), word) if not path.exists() and Path(name).is_file() else (path, "")


def read_tensors(path: Path) -> dict:
    """Returns what a file holds, by name. A value in entry b of entry a has the name a.b.

    The file holds safetensors or a pickle, whose code is never run, or is the index of such files. A `UserError` says
    what is wrong with the file.
    """
    if not path.is_file():
        advice = "; give the file in it" if path.is_dir() else ""
        raise UserError(f"{path} does not exist, or is not a file{advice}")
    check_name(path)
    try:
        if is_safetensors(path):
            return load_file(path)
        with open(path, "rb") as file:
            is_json = file.read(64).lstrip().startswith(b"{")
        if is_json:
            return read_shards(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that are refused anyway.
            with open(path, "rb") as file:
                held = list(flatten(torch.load(file, map_location="cpu", weights_only=True)))
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions") from error
    except Exception as error:  # If a pickle is broken, torch may raise any error.
        raise UserError(f"{path} {diagnosis(path, error)}") from error
    if len(dict(held)) < len(held):
        raise UserError(f"{path} holds two values with the same name; use the same weights in safetensors format")
    return dict(held)


def read_shards(path: Path) -> dict:
    """Returns the tensors of all files that an index names. The files lie next to the index."""
    places = json.loads(path.read_bytes())["weight_map"]
    held = {}
    for shard in sorted(set(places.values())):
        tensors = read_tensors(path.with_name(shard))
        held |= {name: value for name, value in tensors.items() if places.get(name) == shard}
    if len(held) < len(places):
        missing = next(name for name in places if name not in held)
        raise UserError(f"{path} names {missing}, which is not in {places[missing]}; download the files again")
    return held


def flatten(held: object, stem: str = "") -> Iterator[tuple[str, object]]:
    """Yields what nested dictionaries hold, each with its name: the keys that lead to it, joined by dots."""
    if isinstance(held, dict):
        for key, value in held.items():
            yield from flatten(value, f"{stem}.{key}" if stem else str(key))
    else:
        yield stem, held


def diagnosis(path: Path, error: Exception) -> str:
    """Says what an unreadable file is, and what to do."""
    with open(path, "rb") as file:
        first = file.read(64)
        file.seek(max(0, path.stat().st_size - 2**20))
        last = file.read()
    inside = last if first.startswith(b"PK") else b""  # A zip archive ends with the names of its files.
    if b".npy" in inside:
        return "is a numpy archive, which cannot be read here; use the same weights in safetensors format"
    if b"/constants.pkl" in inside:
        return "is a TorchScript program; torch.save(torch.jit.load(FILE).state_dict(), NEW) makes a readable file"
    if first.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer instead of the file; fetch the file with `git lfs pull`"
    if first.startswith(b"\x89HDF") or path.suffix == ".msgpack":
        return "is a TensorFlow or Flax file, which cannot be read here; use the same weights in safetensors format"
    if first.startswith(b"{"):
        return "is not an index of weights; give the file of weights"
    if "GLOBAL" in str(error):
        return "holds code and was not loaded; use the weights in safetensors format, or save its state_dict() alone"
    return "is truncated or is not a weights file"
