"""This module handles the processes of a run, as many as torchrun started, and the device of each process."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from support.errors import UserError


class Processes:
    """The current process and the other processes of the run. Only the first one, `main`, writes files and prints."""

    patience = 60  # After this many seconds, all processes must see the same files.

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.main = self.rank == 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))  # This is the rank on this machine.
        one_gpu_each = self.world > 1 and device in ("auto", "cuda") and torch.cuda.is_available()
        self.device = pick_device(f"cuda:{self.local_rank}" if one_gpu_each else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        if self.world > 1 and not dist.is_initialized():
            # The timeout lets the first process download a data set while the others wait.
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=2))

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of the tensor over all processes. It does not change the tensor itself."""
        if self.world == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def first(self, action: Callable) -> Any:
        """Runs `action`, e.g. a download, in the first process, then in the first of each machine, then in all others.

        Later processes find the work done.
        """
        turn = 0 if self.main else 1 if self.local_rank == 0 else 2
        for at in range(3):
            if at == turn:
                result = action()
            if self.world > 1:
                dist.barrier()
        return result

    def launcher(self) -> list[str]:
        """Returns the words that start a script in as many processes, on as many machines."""
        if self.world == 1:
            return ["python"]
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        words = ["torchrun", f"--nproc_per_node={here}"]
        if here < self.world:
            rendezvous = f"--rdzv_endpoint={os.environ.get('MASTER_ADDR', 'MACHINE')}"
            words += [f"--nnodes={self.world // here}", "--rdzv_backend=c10d", rendezvous]
        return words

    def check_same(self, look: Callable, place: str) -> None:
        """Raises a `UserError` in all processes unless they all see the same files in `place`."""
        for _ in range(self.patience):
            everyones = [look()] * self.world
            if self.world > 1:
                dist.all_gather_object(everyones, everyones[0])
            if everyones.count(everyones[0]) == self.world:
                return
            time.sleep(1)  # A shared disk may need some time to show what another machine wrote.
        raise UserError(f"the processes see different files in {place}; give a folder that all machines share")


def pick_device(name: str) -> torch.device:
    """Returns the device of that name. "auto" means CUDA if there is a GPU for it, and otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # This line fails if there is no such device.
    except Exception as error:  # Each kind of device raises its own errors.
        raise UserError(f"device '{name}' is not available ({str(error).splitlines()[0]}); use cpu") from error
    return device


def spare_cores() -> int:
    """Returns how many workers may decode images for this process: its share of the cores, but at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
