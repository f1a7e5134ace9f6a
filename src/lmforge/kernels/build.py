"""The C++ files of `native/` as a library of this machine: built by its compiler when first needed, kept on disk.

    sources + flags + processor ─hash─▶ ~/.cache/lmforge/kernels/HASH.so ─▶ checked on one small product ─▶ `library()`

LMFORGE_KERNELS chooses: `native` (what this processor has; the default), `avx2`, `plain` (portable C++), or `off`. With
no compiler, or where the small product comes out wrong, there is no library, and each module does without.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lmforge.errors import InputError
from lmforge.kernels.layout import STRUCTS
from lmforge.machine import describe
from lmforge.progress import log

NATIVE = Path(__file__).parent / "native"
VARIABLE = "LMFORGE_KERNELS"
SECONDS = 300  # that a compiler may take
CHECKS: list[Callable[[ctypes.CDLL], bool]] = []  # what a library has to pass before it is used (`reference`)
# the last: comparisons may be made sixteen at a time
_COMMON: tuple[str, ...] = ("-std=c++17", "-shared", "-fPIC", "-pthread", "-w", "-ffp-contract=off")
_COMMON = (*_COMMON, "-fno-math-errno", "-fno-trapping-math")
FLAGS = {
    "native": ("-O3", "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"),
    "avx2": ("-O3", "-mavx2", "-mfma", "-mf16c"),
    "plain": ("-O2", "-DLMFORGE_PLAIN"),
}


def wanted() -> str:
    """What LMFORGE_KERNELS asks for.

    Raises:
        InputError: it asks for what is not there.
    """
    choice = os.environ.get(VARIABLE, "native")
    if choice not in (*FLAGS, "off"):
        raise InputError(f"{VARIABLE}={choice}: not a set of kernels; there are {', '.join((*FLAGS, 'off'))}")
    return choice


def compiler() -> str | None:
    """The C++ compiler here: what CXX names, or c++, g++, clang++."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where libraries are kept: XDG_CACHE_HOME or ~/.cache, then lmforge/kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmforge" / "kernels"


def library() -> ctypes.CDLL | None:
    """The library that LMFORGE_KERNELS asks for, built where it is not there yet; None: there is none."""
    choice = wanted()
    return None if choice == "off" else _loaded(choice)


def path_taken() -> str:
    """What multiplies here, in words: the instructions of the library, or what goes on without it."""
    here = library()
    if here is not None:
        here.lmforge_path.restype = ctypes.c_char_p
        return f"own kernels ({here.lmforge_path().decode()})"
    if wanted() == "off":
        return f"torch ({VARIABLE}=off)"
    return "torch (own kernels could not be built)" if compiler() else "torch (no C++ compiler here)"


def read_rate(address: int, size: int, threads: int, streams: int = 4) -> float:
    """Bytes per second with which so many threads read memory once, each in 1, 4 or 8 streams; 0 where there is no
    library."""
    here = library()
    if here is None:
        return 0.0
    started = time.perf_counter()
    here.lmforge_read(ctypes.c_void_p(address), ctypes.c_int64(size), ctypes.c_int64(threads), ctypes.c_int64(streams))
    return size / (time.perf_counter() - started)


@functools.cache
def _loaded(choice: str) -> ctypes.CDLL | None:
    built = build(choice)
    if built is None:
        return None
    try:
        here = ctypes.CDLL(str(built))
    except OSError as error:
        log(f"kernels: {built} cannot be loaded ({error}); torch is used")
        return None
    here.lmforge_layout.restype = ctypes.c_int64
    same = [here.lmforge_layout(ctypes.c_int64(n)) == ctypes.sizeof(each) for n, each in enumerate(STRUCTS)]
    if not all(same) or not all(check(here) for check in CHECKS):
        log(f"kernels: {built} multiplies wrongly on this machine; torch is used")
        return None
    return here


def build(choice: str) -> Path | None:
    """The library's file, compiled unless it is kept from before. None: no compiler, or it failed (told in the log)."""
    tool = compiler()
    if tool is None:
        log("kernels: no C++ compiler here (c++, g++, clang++); torch is used, which is slower for few bits")
        return None
    sources = sorted(NATIVE.iterdir())
    known = hashlib.sha256(
        "\0".join((tool, str(_version(tool)), *_COMMON, *FLAGS[choice], str(describe()["capability"]))).encode()
    )
    for source in sources:
        known.update(source.read_bytes())
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        folder = Path(tempfile.mkdtemp(prefix="lmforge-kernels-"))
    target = folder / f"{known.hexdigest()[:24]}.so"
    with _alone(target.with_suffix(".lock")):
        return target if target.exists() or _compile(tool, choice, target) else None


@functools.cache
def _version(tool: str) -> int:
    """What changes where the compiler is replaced."""
    return Path(tool).resolve().stat().st_mtime_ns


def _compile(tool: str, choice: str, target: Path) -> bool:
    started = time.perf_counter()
    fresh = target.with_suffix(f".{os.getpid()}.new")
    command = [tool, *_COMMON, *FLAGS[choice], str(NATIVE / "kernels.cpp"), "-o", str(fresh)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        failed = done.stderr.strip().splitlines()[:1] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = [str(error)]
    if failed is not None:
        log(f"kernels: {tool} failed ({''.join(failed)[:200]}); torch is used")
        fresh.unlink(missing_ok=True)
        return False
    os.replace(fresh, target)
    log(f"kernels: built for this machine in {time.perf_counter() - started:.0f} s ({target})")
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process between looking for a library and having made it (where the system has file locks)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
