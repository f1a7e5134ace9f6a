"""The machine: what control groups allow, speeds that are real, words for the doctor."""

import psutil
import torch

from lmforge.machine import cores, memory_bytes
from lmforge.plan.hardware import Hardware, backends, detect


def test_this_machine() -> None:
    measured = detect(measure=False)
    assert 1 <= measured.cores <= psutil.cpu_count()
    assert 2**28 < measured.memory_bytes <= psutil.virtual_memory().total
    assert measured.matrix_flops is None
    assert (measured.cores, measured.memory_bytes) == (cores(), memory_bytes())


def test_speeds_are_measured_and_threads_are_left_alone() -> None:
    before = torch.get_num_threads()
    measured = detect()
    assert torch.get_num_threads() == before
    assert measured.matrix_flops is not None
    assert measured.bytes_per_second is not None
    assert 1e9 < measured.matrix_flops < 1e17
    assert 1e8 < measured.bytes_per_second < 1e14


def test_devices_in_words() -> None:
    assert Hardware(cores=1, memory_bytes=1).device == "CPU, 1 core"
    assert Hardware(cores=2, memory_bytes=7).device_memory_bytes == 7
    assert Hardware(cores=2, memory_bytes=7, gpu="X", gpu_memory_bytes=9).device_memory_bytes == 9


def test_every_part_says_what_it_uses_and_why() -> None:
    measured = backends()
    assert {"training", "precision", "8-bit products", "several processes"} <= set(measured)
    assert all(row["uses"] and row["why"] for row in measured.values())
