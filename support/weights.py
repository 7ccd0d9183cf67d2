"""This file says where files of weights are kept, and it downloads and reads them."""

import argparse
import http.client
import os
import socket
import urllib.request
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

from support.errors import UserError
from support.files import check_name

HUB = "https://huggingface.co"


def cache_path(name: str) -> Path:
    """Returns the path at which a teacher's file is kept."""
    return Path(torch.hub.get_dir(), "attention_transfer", f"{name}.safetensors")


def address(url: str) -> str:
    """Returns the address. If the variable HF_ENDPOINT names a mirror of the hub, it is the address there."""
    return url.replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))


def download(url: str, path: Path, otherwise: str) -> None:
    """Downloads a file to `path`. A download that was cut short is not noticed here, but when the file is read.

    For every trouble of the network it raises a `UserError` that ends with `otherwise`, the other ways to the file.
    """
    socket.setdefaulttimeout(60)  # After so many seconds without a byte, torch's download fails instead of hanging.
    try:
        urllib.request.Request(url)  # A text that is no address fails here, before torch.hub makes a file.
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"cannot download {url} ({reason}); {otherwise}") from error


def is_safetensors(path: Path) -> bool:
    """Tells whether a file begins as safetensors do, with 8 bytes for the header's length and the header in JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_tensors(path: Path, container: str = "") -> dict:
    """Returns the tensors of a file by name. If a pickle has an entry `container`, they are taken from that entry.

    The file holds safetensors or a pickle, of which no code is run. A `UserError` says what is wrong with a file.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there, or is no file")
    check_name(path)
    try:
        if is_safetensors(path):
            held = load_file(path)
        else:
            # Some authors' files hold settings in an argparse.Namespace, in which no code can hide.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about pickles that are refused anyway.
                with open(path, "rb") as file:
                    held = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions") from error
    except Exception as error:  # If a pickle is broken, torch may raise any error.
        holds_code = "GLOBAL" in str(error)
        problem = "holds code and was not loaded" if holds_code else "is cut short or is no weights file"
        raise UserError(f"{path} {problem}") from error
    if isinstance(held, dict):
        held = held.get(container, held)
    if not isinstance(held, dict):
        raise UserError(f"{path} holds no named tensors")
    return {str(name): value for name, value in held.items()}
