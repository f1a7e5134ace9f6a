"""One place where benchmarks write what they measured: bench/results/NAME.json, each row by itself.

    RESULTS = Results("int8", packages=("torch",))
    RESULTS.add("width 384", {"ratio": 1.5})

A row names the command that made it, the commit, the machine, the versions and the day. Measuring one row again leaves
the others as they are, and what was measured on another machine keeps that machine's name. A commit counts as clean
when nothing but bench/results differs from it, so that writing one result does not spoil the next.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = HERE / "results"


def public_texts() -> Path:
    """Where the public texts and benchmarks are: LMFORGE_DATA, or beside the checkout."""
    return Path(os.environ.get("LMFORGE_DATA") or ROOT.parent / "shared" / "data")


def command() -> str:
    """The command line of this process as one types it in the checkout; paths outside of it by their last part."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    head = ["python", "-m", module.name] if module else ["python", Path(sys.argv[0]).name]
    return shlex.join([*head, *(Path(part).name if part.startswith("/") else part for part in sys.argv[1:])])


def commit() -> str:
    """The commit of this checkout, with `+changes` where anything but the results differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--", ".", ":!bench/results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "no checkout"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python, lmforge, and those of the packages that are installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    numbers = {"python": platform.python_version()}
    for name in ("lmforge", "torch", *packages):
        with contextlib.suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


class Results:
    """The results file of one benchmark."""

    def __init__(self, name: str, packages: Iterable[str] = (), folder: Path = FOLDER) -> None:
        self.name, self.packages = name, tuple(packages)
        self.path = folder / f"{name}.json"

    def rows(self) -> dict[str, dict[str, Any]]:
        """Row → figures, command, commit, day, machine, versions."""
        if not self.path.exists():
            return {}
        rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text())["rows"]
        return rows

    def figures(self) -> dict[str, Any]:
        """Row → figures; rows named `a/b` stand as b inside a."""
        nested: dict[str, Any] = {}
        for name, row in self.rows().items():
            *outer, last = name.split("/")
            inside = nested
            for part in outer:
                inside = inside.setdefault(part, {})
            inside[last] = row["figures"]
        return nested

    def add(self, row: str, figures: Any, **about: Any) -> None:
        """Enter one row in place of the one of this name; all others stay. `about`: what else to say of it (a peer's
        commit, threads)."""
        from lmforge import machine
        from lmforge.record import write_atomic

        here = machine.describe()
        label = f"{here['processor']}, {here['cores']} cores, {here['capability']}"
        made = {
            "figures": figures,
            "command": command(),
            "commit": commit(),
            "day": datetime.date.today().isoformat(),
            "machine": label,
            "versions": versions(self.packages),
            **about,
        }
        with self._alone():
            stored = json.loads(self.path.read_text()) if self.path.exists() else {}
            rows = {**stored.get("rows", {}), row: made}
            machines = {**stored.get("machines", {}), label: here}
            named = {each["machine"] for each in rows.values()}
            content = {
                "benchmark": self.name,
                "machines": {name: machines[name] for name in sorted(named & machines.keys())},
                "rows": {name: rows[name] for name in sorted(rows)},
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")

    def publish(self, rows: Mapping[str, Any], **about: Any) -> None:
        """Enter several rows and print them."""
        for name, figures in rows.items():
            self.add(name, figures, **about)
        print(json.dumps(dict(rows), indent=1, ensure_ascii=False, default=str))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process of this user between reading and writing."""
        with Path(tempfile.gettempdir(), f"lmforge-bench-{self.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
