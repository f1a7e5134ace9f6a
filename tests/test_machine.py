"""What this process may use: affinity, control groups of both kinds, systems without either; what the processor can."""

from __future__ import annotations

import ast
import os
import platform
from pathlib import Path

import psutil
import pytest

from lmforge import machine
from lmforge.machine import available_bytes, core_limit, cores, limits, memory_bytes, memory_limit, processor

SOURCE = Path(machine.__file__).parent


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups that this process is taken to be in; none yet."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    return tmp_path / "groups"


def test_this_machine() -> None:
    assert 1 <= cores() <= psutil.cpu_count()
    assert 2**28 < available_bytes() <= memory_bytes() <= psutil.virtual_memory().total


def test_version_2_limits_are_those_of_every_group_around(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    write(groups.parent / "membership", "0::/job/step\n")
    write(groups / "job/memory.max", "400000000\n")
    write(groups / "job/memory.current", "350000000\n")
    write(groups / "job/memory.stat", "anon 1\ninactive_file 30000000\n")
    write(groups / "job/step/memory.max", "max\n")
    write(groups / "job/step/cpu.max", "150000 100000\n")
    write(groups / "other/memory.max", "5\n")
    assert memory_bytes() == 400_000_000
    assert available_bytes() == 80_000_000
    assert cores() == 2


def test_version_1_limits_lie_under_their_controllers(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    write(groups.parent / "membership", "5:cpu,cpuacct:/job\n4:memory:/job\n")
    write(groups / "memory/job/memory.limit_in_bytes", "300000000\n")
    write(groups / "memory/job/memory.usage_in_bytes", "100000000\n")
    write(groups / "memory/memory.limit_in_bytes", "9223372036854771712\n")  # "no limit"
    write(groups / "cpu/job/cpu.cfs_quota_us", "-1\n")
    write(groups / "cpu/job/cpu.cfs_period_us", "100000\n")
    write(groups / "cpu/cpu.cfs_quota_us", "300000\n")
    write(groups / "cpu/cpu.cfs_period_us", "100000\n")
    assert memory_bytes() == 300_000_000
    assert available_bytes() == 200_000_000
    assert cores() == 3


@pytest.mark.parametrize("membership", ["", "nonsense", "0::", "0::/../../etc", "\n:::\n"])
def test_no_limits_where_there_are_no_groups(groups: Path, membership: str) -> None:
    write(groups.parent / "membership", membership)
    assert min(limits(memory_limit)) > 2**50
    (groups.parent / "membership").unlink()
    assert min(limits(core_limit)) > 2**50


def test_affinity_counts_and_a_system_without_it_has_all(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (
            "model name\t: Example 9\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_tile\n",
            "Example 9",
            ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX"],
        ),
        ("processor : 0\nFeatures\t: fp asimd evtstrm\n", None, ["NEON"]),
        ("flags : fpu sse2\n", None, []),
    ],
)
def test_flags_of_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str | None, flags: list[str]
) -> None:
    write(tmp_path / "cpuinfo", text)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    told, has = processor()
    assert has == flags
    assert told == name if name else told


def test_flags_of_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine, "_sysctl", lambda name: "Apple M9" if name.endswith("brand_string") else "")
    assert processor() == ("Apple M9", ["NEON"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_sysctl", lambda name: "FPU AVX2 AVX512F" if name.endswith("leaf7_features") else "")
    assert processor()[1] == ["AVX2", "AVX-512"]


def test_what_a_record_says() -> None:
    here = machine.describe()
    assert {"processor", "flags", "cores", "memory_gib", "system", "python", "torch", "capability", "numba_target"} <= {
        *here
    }
    assert here["cores"] == cores()


def test_nothing_else_asks_the_system() -> None:
    """One answer: no other file asks for cores, memory or control groups by itself."""
    asked = {"sched_getaffinity", "cpu_count", "virtual_memory", "process_cpu_count"}
    for path in SOURCE.rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path.name == "machine.py" or not names & asked, path
