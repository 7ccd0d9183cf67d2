"""The processes of a training, one or as many as torchrun started, and the device that each computes on."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from support.errors import UserError


class Processes:
    """This process among those of the training. Only the first, `main`, writes files and speaks."""

    def __init__(self, device: str) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main = self.rank == 0
        one_gpu_each = self.world > 1 and device in ("auto", "cuda") and torch.cuda.is_available()
        self.device = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if one_gpu_each else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
            torch.set_float32_matmul_precision("high")  # TF32
        if self.world > 1 and not dist.is_initialized():
            # Long enough for the first process to download a data set while the others wait.
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=2))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the tensor over all processes; the tensor itself is left as it is."""
        if self.world == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def first(self, action: Callable) -> Any:
        """Lets the first process act, e.g. download, before the others do the same and find it done."""
        result = action() if self.main else None
        if self.world > 1:
            dist.barrier()  # the others wait here
        return result if self.main else action()


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # raises if there is no such device
    except Exception as error:  # each kind of device has its own
        raise UserError(f"device '{name}' is not there ({str(error).splitlines()[0]}); use cpu") from error
    return device


def autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type in which matrix products are computed, or None for float32 throughout."""
    on_cuda = device.type == "cuda"
    if amp == "fp16" and not on_cuda:
        raise UserError("--amp fp16 needs CUDA; on the CPU use bf16 or off")
    if amp == "auto" and on_cuda:
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)


def peak_memory(device: torch.device) -> float:
    """The most memory in use so far, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # Linux and macOS, which count in kilobytes and in bytes
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1e-3)
