"""The kernels give the same bits for each kind of processor; for ARM too, where a cross compiler and qemu are there."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmforge.kernels import build

PROGRAM = Path(__file__).parent / "native" / "every_product.cpp"
COMMON = [flag for flag in build._COMMON if flag not in ("-shared", "-fPIC")]
ZIG = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static"]
ARM = {"neon": [], "neon-dotprod": ["-mcpu=generic+dotprod"]}


def told(command: list[str], run: list[str], out: Path) -> list[str]:
    """What the program prints, built by `command` and started by `run`: its path and its hash."""
    built = [*command, *COMMON, f"-I{build.NATIVE}", str(PROGRAM), "-o", str(out)]
    subprocess.run(built, check=True, capture_output=True)
    return subprocess.run([*run, str(out)], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_all_print_the_same_hash(tmp_path: Path) -> None:
    tool = build.compiler()
    if tool is None:
        pytest.skip("no C++ compiler here")
    _, expected = told([tool, *build.FLAGS["plain"]], [], tmp_path / "plain")
    for choice in ("native", "avx2"):
        try:
            assert told([tool, *build.FLAGS[choice]], [], tmp_path / choice)[1] == expected, choice
        except subprocess.CalledProcessError:  # instructions that this processor or compiler has not
            assert choice == "avx2"


@pytest.mark.slow
@pytest.mark.parametrize("path", ARM)
def test_arm_prints_it_too(tmp_path: Path, path: str) -> None:
    tool, emulator = build.compiler(), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if tool is None or emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs a C++ compiler, the package ziglang and qemu-aarch64")
    _, expected = told([tool, *build.FLAGS["plain"]], [], tmp_path / "plain")
    command = [*ZIG, "-O2", *ARM[path]]
    assert told(command, [emulator, "-cpu", "max"], tmp_path / "arm") == [path, expected]
