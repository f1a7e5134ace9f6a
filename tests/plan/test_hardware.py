"""The machine: what control groups allow, speeds that are real, words for the doctor."""

from pathlib import Path

import psutil
import pytest
import torch

from lmforge.plan.hardware import Hardware, _core_limit, _limits, _memory_limit, backends, cores, detect, memory_bytes


def test_this_machine() -> None:
    found = detect(measure=False)
    assert 1 <= found.cores <= psutil.cpu_count()
    assert 2**28 < found.memory_bytes <= psutil.virtual_memory().total
    assert found.matrix_flops is None
    assert (found.cores, found.memory_bytes) == (cores(), memory_bytes())


def test_speeds_are_measured_and_threads_are_left_alone() -> None:
    before = torch.get_num_threads()
    found = detect()
    assert torch.get_num_threads() == before
    assert found.matrix_flops is not None
    assert found.bytes_per_second is not None
    assert 1e9 < found.matrix_flops < 1e17
    assert 1e8 < found.bytes_per_second < 1e14


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_version_2_are_those_of_every_group_around(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/job/step\n")
    write(tmp_path / "g/job/memory.max", "4000000000\n")
    write(tmp_path / "g/job/step/memory.max", "max\n")
    write(tmp_path / "g/job/step/cpu.max", "150000 100000\n")
    write(tmp_path / "g/other/memory.max", "5\n")
    assert min(_limits(_memory_limit, tmp_path / "g", tmp_path / "membership")) == 4_000_000_000
    assert min(_limits(_core_limit, tmp_path / "g", tmp_path / "membership")) == 2


def test_limits_of_version_1_lie_under_their_controllers(tmp_path: Path) -> None:
    write(tmp_path / "membership", "5:cpu,cpuacct:/job\n4:memory:/job\n")
    write(tmp_path / "g/memory/job/memory.limit_in_bytes", "3000000000\n")
    write(tmp_path / "g/cpu/job/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "g/cpu/job/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "g/cpu/cpu.cfs_quota_us", "300000\n")
    write(tmp_path / "g/cpu/cpu.cfs_period_us", "100000\n")
    assert min(_limits(_memory_limit, tmp_path / "g", tmp_path / "membership")) == 3_000_000_000
    assert min(_limits(_core_limit, tmp_path / "g", tmp_path / "membership")) == 3


@pytest.mark.parametrize("membership", ["", "nonsense", "0::", "0::/../../etc", "\n:::\n"])
def test_no_limits_where_there_are_no_groups(tmp_path: Path, membership: str) -> None:
    write(tmp_path / "membership", membership)
    assert min(_limits(_memory_limit, tmp_path / "none", tmp_path / "membership")) > 2**50
    assert min(_limits(_memory_limit, tmp_path / "none", tmp_path / "absent")) > 2**50


def test_devices_in_words() -> None:
    assert Hardware(cores=1, memory_bytes=1).device == "CPU, 1 core"
    assert Hardware(cores=2, memory_bytes=7).device_memory_bytes == 7
    assert Hardware(cores=2, memory_bytes=7, gpu="X", gpu_memory_bytes=9).device_memory_bytes == 9


def test_every_part_says_what_it_uses_and_why() -> None:
    found = backends()
    assert {"training", "precision", "8-bit products", "several processes"} <= set(found)
    assert all(row["uses"] and row["why"] for row in found.values())
