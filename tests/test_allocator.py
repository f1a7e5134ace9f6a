"""The allocator setting is applied where glibc is, and harmless elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lmforge import allocator


def test_in_a_process_of_its_own() -> None:
    code = "from lmforge.allocator import keep_freed_memory; print(keep_freed_memory())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out in ("True", "False")
    if sys.platform == "linux" and "glibc" in str(sys.version) + str(__import__("platform").libc_ver()):
        assert out == "True"


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False


def test_giving_memory_back_is_harmless_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator.give_back_freed_memory()

    asked: list[str] = []

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    allocator.give_back_freed_memory()
    assert asked == ["libc.so.6"]


def test_freed_arrays_return_to_the_system_for_a_while_and_are_kept_again() -> None:
    """In a process of its own: what a freed array of 8 MiB leaves in the resident memory, inside and after."""
    code = """
import numpy as np, psutil
from lmforge.allocator import freed_memory_returned, keep_freed_memory
def left():
    before = psutil.Process().memory_info().rss
    arrays = [np.ones(1 << 20) for _ in range(8)]
    del arrays
    return (psutil.Process().memory_info().rss - before) >> 20
kept = keep_freed_memory()
with freed_memory_returned():
    inside = left()
print(kept, inside, left())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[1]) < 16
    if out[0] == "True":
        assert int(out[2]) > 48


def test_training_may_return_large_blocks_and_those_only() -> None:
    """In a process of its own: faults of touching a block again and again, large and small, where it is returned and
    where it is kept."""
    code = """
import resource, torch
from lmforge.allocator import LARGE, keep_freed_memory, memory_for
def faults(size):
    for _ in range(8):
        torch.ones(size, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(size, dtype=torch.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * 4096 / (4 * size)
kept = keep_freed_memory()
for returned in (False, True):
    with memory_for(returned):
        print(kept, faults(2 * LARGE), faults(LARGE // 4))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    plain, returned = [[float(x) for x in out[i + 1 : i + 3]] for i in (0, 3)]
    if out[0] == "True":
        assert plain[1] < 0.2
        assert returned[0] > 0.8
        assert returned[1] < 0.2


def test_freed_memory_is_kept_for_a_while_and_goes_back() -> None:
    """Training from Python, without our command: inside it is kept, then it goes, twice over; where the command has it
    kept, it stays."""
    code = """
import numpy as np, psutil
from lmforge.allocator import freed_memory_kept, freed_memory_returned, keep_freed_memory
def rss():
    return psutil.Process().memory_info().rss >> 20
def left():
    before = rss()
    arrays = [np.ones(1 << 23) for _ in range(2)]
    del arrays
    return rss() - before
start = rss()
for _ in range(2):
    with freed_memory_kept():
        inside = left()
    print(inside, rss() - start, left())
with freed_memory_returned():
    pass
array = np.ones(1 << 20)  # 8 MiB: below the threshold that glibc's own settings reach
before = rss()
del array
print(before - rss())
kept = keep_freed_memory()
with freed_memory_kept():
    pass
print(kept, left())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in out.splitlines()]
    if lines[-1][0] == "True":
        for inside, after, outside in lines[:2]:
            assert int(inside) > 48
            assert int(after) < 32
            assert int(outside) < 16
        assert int(lines[2][0]) < 4  # "returned" does not stay either
        assert int(lines[-1][1]) > 48
