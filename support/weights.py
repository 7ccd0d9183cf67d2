"""Files of weights: where they are kept, how they are downloaded and read."""

import argparse
import http.client
import os
import socket
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support.errors import UserError

HUB = "https://huggingface.co"


def cache_path(name: str) -> Path:
    """Where a teacher's file is kept."""
    return Path(torch.hub.get_dir()) / "attention_transfer" / f"{name}.safetensors"


def address(url: str) -> str:
    """The address, at the mirror of the hub that HF_ENDPOINT names if there is one."""
    return url.replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))


def download(url: str, path: Path, otherwise: str) -> None:
    """Downloads a file to `path`. A transfer that was cut short is not noticed here, but when the file is read.

    Raises a `UserError` for every trouble of the network; it ends with `otherwise`, the other ways to the file.
    """
    socket.setdefaulttimeout(60)  # These are seconds without a byte. torch's download has no limit of its own.
    try:
        urllib.request.Request(url)  # What is no address fails here, before torch.hub leaves a file behind.
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"cannot download {url} ({reason}); {otherwise}") from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of the header in 8 bytes, then the header, in JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_tensors(path: Path, container: str = "") -> dict[str, Any]:
    """What a file holds by name: safetensors, or a pickle, from whose entry `container` it is taken if there is one.

    A pickle may run no code. Raises a `UserError` that names the file and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there, or is no file")
    try:
        if is_safetensors(path):
            held = load_file(path)
        else:
            # Some authors' files hold their settings as an argparse.Namespace, in which no code can hide.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of pickles that are refused anyway.
                with open(path, "rb") as file:
                    held = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions") from error
    except Exception as error:  # A broken pickle can raise anything.
        holds_code = "GLOBAL" in str(error)
        problem = "holds code and was not loaded" if holds_code else "is cut short or is no weights file"
        raise UserError(f"{path} {problem}") from error
    if isinstance(held, dict) and container in held:
        held = held[container]
    if not isinstance(held, dict):
        raise UserError(f"{path} holds no named tensors")
    return {str(name): value for name, value in held.items()}
