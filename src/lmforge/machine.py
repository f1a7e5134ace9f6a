"""What this machine is, for this process: the cores and the memory it may use, and what its processor can do.

Containers and batch systems give a process less than the machine has, so affinity and control groups (versions 1 and
2) are asked before the machine. Everything that sizes itself by cores or memory asks here.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_UNLIMITED = 1 << 60  # control groups of version 1 say "no limit" with a number near 2^63
# what fast code looks for, by the name that Linux, macOS and LLVM give it
_FLAGS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni", "avx512vnni"),
    "AVX-512 BF16": ("avx512_bf16", "avx512bf16"),
    "AMX": ("amx_tile", "amx-tile"),
    "NEON": ("asimd", "neon", "advsimd"),
    "SVE": ("sve",),
}


def cores() -> int:
    """Cores this process may use: its affinity (all, where the system has none: macOS), and its control groups' share
    of processor time, rounded up."""
    return max(1, min(_allowed_cores(), *limits(core_limit)))


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory this process may use: the machine's, or its control groups' limit where that is lower."""
    return min(int(psutil.virtual_memory().total), *limits(memory_limit))


def available_bytes() -> int:
    """Main memory this process can still take: what the machine has free, or what is left under its control groups'
    limits, where that is less."""
    return max(0, min(int(psutil.virtual_memory().available), *limits(_memory_left)))


def peak_bytes() -> int:
    """The most main memory that this process has had at once, by the system's own account; where that cannot be asked,
    what it has now."""
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return int(psutil.Process().memory_info().rss)


def limits(read: Callable[[Path], int | None], root: Path | None = None, membership: Path | None = None) -> list[int]:
    """What `read` gives for the control groups this process is in and for those around them; at least one (large)
    number. `root` and `membership` default to the system's."""
    root, membership = root or _CGROUPS, membership or _MEMBERSHIP
    folders = {root, root / "memory", root / "cpu"}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in membership.read_text().splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            kinds = [name for name in controllers.split(",") if name in ("memory", "cpu")] or [""]
            for kind in kinds:
                here = root / kind / path.lstrip("/")
                folders |= {folder for folder in (here, *here.parents) if folder.is_relative_to(root)}
    stated = (read(folder) for folder in folders)
    return [_UNLIMITED, *(limit for limit in stated if limit is not None)]


def memory_limit(folder: Path) -> int | None:
    """Bytes that a control group may use; None without a limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or the word "max"
            return int((folder / name).read_text())
    return None


def _memory_left(folder: Path) -> int | None:
    limit = memory_limit(folder)
    if limit is None or limit >= _UNLIMITED:
        return None
    for name in ("memory.current", "memory.usage_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            used = int((folder / name).read_text())
            return limit - used + _reclaimable(folder)
    return limit


def _reclaimable(folder: Path) -> int:
    """Cached file pages count as used, though the kernel gives them up when asked."""
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def core_limit(folder: Path) -> int | None:
    """Cores' worth of time that a control group may use, rounded up; None without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return math.ceil(quota_us / int((folder / "cpu.cfs_period_us").read_text())) if quota_us > 0 else None
    return None


def processor() -> tuple[str, list[str]]:
    """(the processor's name, those of AVX2, AVX-512, AVX-512 VNNI, AVX-512 BF16, AMX, NEON, SVE that it has)."""
    name, words = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                words |= set(value.split())
    if platform.system() == "Darwin":
        name = _sysctl("machdep.cpu.brand_string") or name
        features = " ".join(_sysctl(f"machdep.cpu.{part}") for part in ("features", "leaf7_features"))
        words |= set(features.lower().split())
        words |= {"neon"} if platform.machine() == "arm64" else set()  # every Apple processor of that kind has it
    return name, [flag for flag, spelt in _FLAGS.items() if words & {*spelt}]


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


@cache
def describe() -> dict[str, Any]:
    """What a reader of a record can compare: processor, flags, cores and memory that may be used, system, Python,
    torch, what torch and numba compile for, GPU."""
    import torch
    from llvmlite import binding

    name, flags = processor()
    return {
        "processor": name,
        "flags": flags,
        "cores": cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "numba_target": binding.get_host_cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
