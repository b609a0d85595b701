"""How much memory this process has used at most, and how much it may use, in bytes: what estimates are compared with."""

import resource
import sys
from pathlib import Path

import psutil
import torch

from engine.machine_memory import machine_memory

_STATUS = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """On a GPU the most that its tensors held there; on a CPU the most that was resident, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # unlike getrusage, this forgets what stood here before this program was started
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def room_bytes(device: torch.device) -> int:
    """What this process may take in all: what is free on the GPU, or on the machine and in its container, and what it has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return machine_memory().available_bytes + psutil.Process().memory_info().rss
