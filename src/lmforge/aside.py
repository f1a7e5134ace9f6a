"""What another recipe would throw away is kept beside its place, as NAME.stale-1, NAME.stale-2, …, until someone asks
for it to go (`--fresh`, or by hand); and it is brought back when it is wanted again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from lmforge.progress import log


def asides(path: Path) -> list[Path]:
    """What was set aside from `path`, the oldest first."""
    pattern = re.compile(re.escape(path.name) + r"\.stale-(\d+)$")
    numbered = [(int(match[1]), each) for each in path.parent.glob("*") if (match := pattern.match(each.name))]
    return [each for _, each in sorted(numbered)]


def next_aside(path: Path) -> Path:
    """Where what is at `path` would be set aside now; nothing is there."""
    last = asides(path)[-1:]
    number = int(last[0].name.rpartition("-")[2]) + 1 if last else 1
    return path.with_name(f"{path.name}.stale-{number}")


def set_aside(path: Path, why: str) -> Path:
    """Move a folder aside, and say so."""
    kept = next_aside(path)
    os.replace(path, kept)
    log(f"{path}: {why}; what was there is kept in {kept} ({size_in_words(kept)}): remove it when nobody needs it")
    return kept


def bring_back(path: Path, is_wanted: Callable[[Path], bool]) -> bool:
    """Put the newest folder that was set aside from `path` and is wanted in its place, where nothing may be; whether
    there was one."""
    for kept in reversed(asides(path)):
        if is_wanted(kept):
            os.replace(kept, path)
            log(f"{path}: {kept} was made by this very recipe from these inputs, and is brought back")
            return True
    return False


def drop(path: Path) -> None:
    """Remove a folder and all that was set aside from it, and say what goes; nothing where nothing is."""
    for each in (path, *asides(path)):
        if each.exists():
            log(f"{each}: removed, as --fresh asks ({size_in_words(each)})")
            shutil.rmtree(each)


def size_in_words(path: Path) -> str:
    """The bytes of all files under `path`: '12.3 MB'."""
    size = float(sum(each.stat().st_size for each in path.rglob("*") if each.is_file()))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
