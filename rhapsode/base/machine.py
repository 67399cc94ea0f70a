"""What this machine can do: threads it may use, arithmetic it reaches, memory it has, the device to compute on."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rhapsode.base.errors import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


@cache
def threads() -> int:
    """Physical cores this process may use: its affinity and its container's CPU quota counted, at least 1."""
    import psutil

    logical = psutil.cpu_count(logical=True) or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = min(physical, max(1, allowed * physical // logical))
    return max(1, int(min(cores, _cpu_quota())))


def _cpu_quota() -> float:
    """Cores' worth of time that the container allows (cgroup v2 or v1); infinite where nothing limits it."""
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota_file).read_text(encoding="ascii").split()
            period = Path(period_file).read_text(encoding="ascii") if period_file else words[1]
            if words[0] not in ("max", "-1"):
                return max(1.0, int(words[0]) / int(period))
        except (OSError, ValueError, IndexError):
            continue
    return math.inf


def memory_bytes() -> int:
    """Memory that is free to use now, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def processor() -> str:
    """The processor's name, as people know it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def made_by_intel() -> bool:
    """Whether the processor is one of Intel's, for which its own library of matrix products is written."""
    try:
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            return True
    except OSError:
        pass
    return "intel" in platform.processor().lower()


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks, once per process.

    By default it hands them back to the system, and each training step faults its activations in again. Threads that
    start later share one arena, because it gives blocks of their own arenas back whatever it was told.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX in malloc.h
        for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-8, 1)):
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        return  # another C library: only slower


def give_back_freed_memory() -> None:
    """Hand freed memory back to the system now, where `keep_freed_memory` keeps it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: it has kept nothing
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes the fastest there is.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    import torch

    if name not in DEVICES:
        raise InputError(f"device {name!r} is unknown", todo=f"Choose one of: {', '.join(DEVICES)}.")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise InputError(f"this machine has no {name} device", todo="Use --device auto or cpu.")
    return torch.device(name)


def prepare(name: str = "auto", count: int | None = None) -> torch.device:
    """Set torch up for this machine (threads, memory) and return the device called `name`."""
    import torch

    chosen = device(name)
    torch.set_num_threads(count or threads())
    keep_freed_memory()
    return chosen


def peak_flops(on: torch.device, seconds: float = 0.3) -> float:
    """Multiply-adds of fp32 matrices that this machine reaches (bf16 on GPUs that have it), in FLOP/s, measured now."""
    import torch

    size = 768 if on.type == "cpu" else 4096
    dtype = torch.bfloat16 if on.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    a = torch.ones(size, size, device=on, dtype=dtype)
    out = torch.empty_like(a)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        if on.type != "cpu":
            out[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def memory_bandwidth(on: torch.device, seconds: float = 0.5) -> float:
    """Bytes that are read from memory in a second, by all threads, measured now: the best of several sums."""
    import torch

    numbers = torch.ones(1 << 26, device=on)  # 256 MB, more than any cache
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        numbers.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * numbers.element_size() / best
