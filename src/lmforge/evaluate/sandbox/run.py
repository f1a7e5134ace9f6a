"""Running a program shut in: start the process, feed and watch it, end it with all its children.

    run_program("print(1 + 1)")  →  Outcome(status="ok", stdout="2\\n", …)
    isolation()                  →  what this machine gives: namespaces, else landlock, else macos, else nothing

What is written comes over pipes that are read up to a limit. Whatever happens, the process group is killed at the end,
and with namespaces the end of their first process is the end of every other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lmforge.errors import LmforgeError

INSIDE = Path(__file__).with_name("inside.py")
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")  # where shared libraries lie
Way = Literal["namespaces", "landlock", "macos", "none"]
Status = Literal["ok", "error", "time", "cpu", "output", "disk", "killed"]
LOOK = 0.05  # seconds between looks at a scratch folder that no file system bounds
MOST_FILES = 1024  # in a scratch folder


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use. `seconds` is by the clock, `cpu_seconds` of the processor; `output_bytes` is for each of
    stdout, stderr and the result. There is one process and one thread."""

    seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 16
    scratch_bytes: int = 16 << 20
    files: int = 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended. status: ok (it came to its end), error (an exception or a non-zero exit, `stderr` says
    which), time, cpu, output, disk (that limit was met), killed (by a signal, `code` −N). `result` is what it wrote to
    the file descriptor RESULT."""

    status: Status
    code: int
    stdout: str
    stderr: str
    result: bytes
    seconds: float
    way: Way


@dataclasses.dataclass(frozen=True)
class Isolation:
    """What keeps programs in on this machine, and what is not kept."""

    way: Way
    words: str
    open_doors: tuple[str, ...] = ()


WAYS: Mapping[Way, Isolation] = {
    "namespaces": Isolation(
        "namespaces", "user, network, process and mount namespaces, a root of its own, Landlock, seccomp, limits"
    ),
    "landlock": Isolation(
        "landlock",
        "Landlock for files, seccomp for network, processes and signals, limits (namespaces are not permitted here)",
        ("names and sizes of files can be seen, though none can be opened",
         "the scratch folder is on disk; what it holds is looked at every 50 ms"),
    ),
    "macos": Isolation(
        "macos",
        "sandbox-exec: no network, no new processes, files written in the scratch folder alone, limits",
        ("system files can be read", "memory is not limited", "Apple calls sandbox-exec deprecated"),
    ),
    "none": Isolation("none", "limits alone", ("network, files and other processes are open to the program",)),
}  # fmt: skip
PROFILE = (
    "(version 1)(allow default)(deny network*)(deny process-fork)(deny file-write*)"
    '(allow file-write* (subpath "{scratch}")(literal "/dev/null"))'
    '(deny file-read* (subpath "/Users"))(allow file-read* (subpath "{scratch}"){readable})'
    "(deny signal (target others))"
)


@cache
def isolation() -> Isolation:
    """The strictest way that works on this machine, tried once by a small program."""
    ways: tuple[Way, ...] = ("namespaces", "landlock") if sys.platform == "linux" else ("macos",)
    for way in ways:
        with contextlib.suppress(LmforgeError, OSError):
            if _once("print(6 * 7)", Limits(), way, "", ()).stdout == "42\n":
                return WAYS[way]
    return WAYS["none"]


def run_program(
    source: str,
    limits: Limits = Limits(),
    *,
    way: Way | None = None,
    stdin: str = "",
    packages: Sequence[Path] = (),
    unsafe: bool = False,
) -> Outcome:
    """Run a Python program (standard library alone, and `packages`, folders of modules) to its end or to a limit.

    `way`: the isolation; default: the strictest there is. Without any, `unsafe` has to be given.

    Raises:
        LmforgeError: this machine isolates nothing and `unsafe` was not given; or the way asked for is not to be had.
    """
    way = way or isolation().way
    if way == "none" and not unsafe:
        raise LmforgeError(
            "sandbox: this machine gives no isolation (neither namespaces nor Landlock with seccomp nor sandbox-exec), "
            "so programs that a model wrote are not run; allow it with unsafe = true, in a container that you can lose"
        )
    return _once(source, limits, way, stdin, packages)


def _readable(packages: Sequence[Path]) -> list[str]:
    """Folders a program needs: this Python's, the system's shared libraries."""
    library = Path(os.__file__).parent  # lib/python3.X
    shared = [library.parent] if (library.parent / "libpython3.so").exists() else []
    found = [*(Path(folder) for folder in SYSTEM), library, *shared, *packages]
    if sys.platform == "darwin":
        found += [Path(sys.base_prefix), Path("/System"), Path("/usr")]
    kept: list[Path] = []
    for path in found:
        if path.exists() and not any(path == each or each in path.parents for each in kept):
            kept.append(path)
    return list(map(str, kept))


def _once(source: str, limits: Limits, way: Way, stdin: str, packages: Sequence[Path]) -> Outcome:
    scratch = tempfile.mkdtemp(prefix="lmforge-sandbox-")
    report, result = os.pipe(), os.pipe()
    order = {
        **dataclasses.asdict(limits), "source": source, "stdin": stdin, "way": way,
        "scratch": os.path.realpath(scratch), "readable": _readable(packages),
        "packages": [str(path) for path in packages],
        "report": report[1], "result": result[1],
    }  # fmt: skip
    try:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(order).encode())
            file.seek(0)
            process = subprocess.Popen(
                [*_before(way, order), sys.executable, "-I", "-S", "-B", str(INSIDE), str(file.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(file.fileno(), report[1], result[1]), env={}, cwd="/", start_new_session=True,
            )  # fmt: skip
        for written in (report[1], result[1]):
            os.close(written)
        return _watched(process, report[0], result[0], limits, way, scratch)
    finally:
        for read in (report[0], result[0]):
            os.close(read)
        shutil.rmtree(scratch, ignore_errors=True)


def _before(way: Way, order: Mapping[str, Any]) -> list[str]:
    """What the interpreter is started by."""
    if way != "macos":
        return []
    readable = "".join(f'(subpath "{path}")' for path in order["readable"])
    return ["sandbox-exec", "-p", PROFILE.format(scratch=order["scratch"], readable=readable)]


def _watched(
    process: subprocess.Popen[bytes], report: int, result: int, limits: Limits, way: Way, scratch: str
) -> Outcome:
    """Read what the program writes until all of it has ended or a limit is met; then nothing of it is left."""
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr", result: "result", report: "report"}
    held = {name: bytearray() for name in pipes.values()}
    began, met = time.monotonic(), ""
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not met:
            left = limits.seconds - (time.monotonic() - began)
            for key, _ in selector.select(max(0.0, min(left, LOOK))):
                text = os.read(key.fd, 1 << 16)
                held[pipes[key.fd]] += text
                if not text:
                    selector.unregister(key.fd)
            if any(len(text) > limits.output_bytes for text in held.values()):
                met = "output"
            elif left <= 0:
                met = "time"
            elif way != "namespaces" and _is_full(scratch, limits.scratch_bytes):
                met = "disk"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    return _told(held, met, time.monotonic() - began, limits, way)


def _told(held: Mapping[str, bytearray], met: str, seconds: float, limits: Limits, way: Way) -> Outcome:
    stdout, stderr = (
        bytes(held[name][: limits.output_bytes]).decode("utf-8", "replace") for name in ("stdout", "stderr")
    )
    told = json.loads(held["report"]) if held["report"] else {}
    if "refused" in told or "\0refused: " in stderr:
        why = told.get("refused") or stderr.partition("\0refused: ")[2]
        raise LmforgeError(f"sandbox: {way} is not to be had on this machine ({why})")
    code = os.waitstatus_to_exitcode(told["ended"]) if "ended" in told else -signal.SIGKILL
    status: str = met or ("ok" if code == 0 else "error" if code > 0 else "killed")
    if status == "killed" and told.get("cpu", 0) >= limits.cpu_seconds - 0.5:
        status = "cpu"
    given = bytes(held["result"][: limits.output_bytes])
    return Outcome(status, code, stdout, stderr, given, seconds, way)  # type: ignore[arg-type]


def _is_full(folder: str, most: int) -> bool:
    """Whether the files below a folder, links not followed, take more than `most` bytes or are more than MOST_FILES."""
    size = count = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
            count += 1
            if size > most or count > MOST_FILES:
                return True
    return False
