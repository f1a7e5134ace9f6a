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
