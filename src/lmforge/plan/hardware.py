"""How fast this machine is, measured, and which way each part of lmforge takes on it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lmforge.machine import cores, memory_bytes

_SIDE = 1024  # of the square matrices multiplied
_COPIED = 64 << 20  # bytes copied to measure memory: beyond most caches


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device (this CPU, or one GPU) and what it stands in. Speeds are None where they were not measured."""

    cores: int
    memory_bytes: int  # main memory that this process may use
    gpu: str | None = None
    gpu_memory_bytes: int = 0
    gpus: int = 0
    matrix_flops: float | None = None  # operations/s of matrix products: fp32 on a CPU, bf16 on a GPU
    bytes_per_second: float | None = None  # memory read and written by a copy on that device

    @property
    def device(self) -> str:
        """The device in words."""
        return self.gpu or f"CPU, {self.cores} core{'s' if self.cores > 1 else ''}"

    @property
    def device_memory_bytes(self) -> int:
        """Memory that holds the network: the GPU's, else the machine's."""
        return self.gpu_memory_bytes if self.gpu else self.memory_bytes


def detect(measure: bool = True) -> Hardware:
    """This machine; with `measure` its speeds too, on all its cores (well under a second)."""
    hardware = Hardware(cores=cores(), memory_bytes=memory_bytes())
    if torch.cuda.is_available():
        whole = torch.cuda.mem_get_info()[1]
        hardware = dataclasses.replace(
            hardware, gpu=torch.cuda.get_device_name(), gpu_memory_bytes=whole, gpus=torch.cuda.device_count()
        )
    if not measure:
        return hardware
    flops, copied = _speeds(hardware)
    return dataclasses.replace(hardware, matrix_flops=flops, bytes_per_second=copied)


def _speeds(hardware: Hardware) -> tuple[float, float]:
    """(operations/s of matrix products, bytes/s of a copy)."""
    device = torch.device("cuda" if hardware.gpu else "cpu")
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    with _all_cores(hardware.cores):
        copy = _fastest(lambda: target.copy_(source), device)
    return matrix_speed(), 2 * _COPIED / copy


def matrix_speed() -> float:
    """Operations a second of matrix products: on all cores that this process may use in fp32, or on one GPU in bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side, kind = (8 * _SIDE, torch.bfloat16) if device.type == "cuda" else (_SIDE, torch.float32)
    a = torch.randn(side, side, device=device, dtype=kind, generator=torch.Generator(device).manual_seed(0))
    with _all_cores(cores()):
        return 2 * side**3 / _fastest(lambda: a @ a, device)


@contextlib.contextmanager
def _all_cores(count: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fastest(work: Callable[[], Any], device: torch.device, seconds: float = 0.15) -> float:
    """Seconds of the fastest call among as many as fit in about `seconds`, at least three after one to warm up: a busy
    moment does not count."""
    work()
    best, spent, calls = math.inf, 0.0, 0
    while calls < 3 or spent < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - started
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def backends() -> dict[str, dict[str, str]]:
    """{part: {uses, why}}: which way each part takes on this machine, and why not the others."""
    cuda = torch.cuda.is_available()
    capability = torch.backends.cpu.get_cpu_capability()
    count = cores()
    compiler = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
    engines = torch.backends.quantized.supported_engines
    others = ", ".join(engines) or "no other"
    int8 = next((name for name in ("fbgemm", "qnnpack") if name in engines), None)
    return {
        "training": {
            "uses": torch.cuda.get_device_name() if cuda else f"CPU, {count} cores, {capability}",
            "why": "torch sees a CUDA device" if cuda else f"no CUDA device ({_why_no_cuda()})",
        },
        "precision": {
            "uses": "bfloat16 autocast over float32 weights" if cuda else "float32",
            "why": "the fast safe type of this GPU"
            if cuda
            else "the fast type of CPUs without matrix units for bfloat16",
        },
        "compiling": {
            "uses": "measured when training starts" if compiler else "eager",
            "why": f"{compiler} is here"
            if compiler
            else "no C++ compiler here; install g++ or clang to let it be tried",
        },
        "attention": {
            "uses": "torch's scaled_dot_product_attention",
            "why": "its flash kernels keep no T×T scores, on CPU and on GPU",
        },
        "8-bit products": {
            "uses": f"CPU, {int8}" if int8 else "float32",
            "why": "torch was built with it" if int8 else f"torch was built without fbgemm and qnnpack ({others})",
        },
        "several processes": {
            "uses": ("nccl" if cuda else "gloo") if torch.distributed.is_available() else "none",
            "why": f"{torch.cuda.device_count()} GPUs here" if cuda else "the backend for CPUs",
        },
        "memory": {
            "uses": f"{memory_bytes() / 2**30:.1f} GiB",
            "why": "what the machine has, or this process's control group allows",
        },
    }


def _why_no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch was built for CPUs only"
    return (
        "no NVIDIA driver answers"
        if not shutil.which("nvidia-smi")
        else "the driver is too old for this torch, or no GPU is visible"
    )
