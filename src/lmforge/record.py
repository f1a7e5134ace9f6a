"""Artefacts: written atomically, checksummed, each naming what it was made from.

A file is written under a temporary name in its own folder, flushed to disk and renamed. A directory is complete when
its `manifest.json`, which lists every file with size and SHA-256, is there; it is renamed into place as the last act.
`record.json` of a run holds, per stage: its key, inputs' hashes, part of the recipe, seed, code version, machine,
seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lmforge import __version__, machine
from lmforge.errors import InputError, LmforgeError

MANIFEST = "manifest.json"
# what lies in the folder of a run, whoever writes it
RUN_NAMES = frozenset(
    {"recipe.toml", "record.json", "report.html", "corpus", "tokens", "train", "model", "compressed", "scores"}
)
CORPUS_WORK = ".corpus.work"
QUIET_SECONDS = 3600.0
# .NAME.PID.tmp, .NAME.8 letters.tmp (mkdtemp), .NAME.tmp, and .NAME.PID.old.tmp while a directory is replaced
_TEMPORARY = re.compile(r"\.(.+?)(?:\.(?:\d+|[a-z0-9_]{8}))?(\.old)?\.tmp$")
_ASIDE = re.compile(r"(?:\.corpus\.work|train)\.stale-\d+")


def canonical_json(value: Any) -> str:
    """The one spelling of `value` that is hashed: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Where this user's caches are kept (XDG_CACHE_HOME); everything in it may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmforge"


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk (a rename is durable only once its directory is)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems refuse fsync on directories
            os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        InputError: no permission to write there.
        LmforgeError: the disk is full or failing; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _explained(path, error) from error
    _sync(path.parent)


def _explained(path: Path, error: OSError) -> LmforgeError:
    if isinstance(error, PermissionError):
        return InputError(f"{path}: no permission to write there; choose another run_dir or change its permissions")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return InputError(f"{path}: a file stands where a directory is needed; choose another run_dir or move it away")
    return LmforgeError(
        f"{path}: could not be written ({error.strerror or error}); free disk space and run the same command again"
    )


@contextlib.contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Give a temporary directory to fill; on success list it in a manifest and rename it to `final`, replacing what was
    there.

    On any exception the temporary directory is removed and `final` is left as it was.

    Raises:
        InputError: no permission to write beside `final`.
        LmforgeError: the disk is full or failing.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise _explained(final, error) from error
    try:
        yield temporary
        write_manifest(temporary)
        replace_directory(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(final, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_directory(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final`; an older `final` is moved aside first and removed afterwards."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old.tmp")
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep_temporaries(directory: Path, names: Collection[str] | None = None, quiet_seconds: float = 0) -> None:
    """Clear what killed processes left behind in `directory`: temporaries of `names` (default: of any), as only this
    package writes them, in which nothing was written for `quiet_seconds`. A directory whose replacement was cut short
    between its two renames is put back."""
    leftovers = [
        (match[1], bool(match[2]), path)
        for path in sorted(directory.glob(".*.tmp"))
        if (match := _TEMPORARY.match(path.name)) and (names is None or match[1] in names)
    ]
    for name, is_old, path in leftovers:
        if quiet_seconds and time.time() - _last_written(path) < quiet_seconds:
            continue
        if is_old and not (directory / name).exists():
            os.replace(path, directory / name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _last_written(path: Path) -> float:
    return max(each.stat().st_mtime for each in (path, *path.glob("*")))


def sweep_run(run: Path) -> None:
    """`sweep_temporaries` of a run, which the caller holds: of what lies in its folder by the names that a run gives
    (the folder may be shared with other files), and of everything in the folders that are its own."""
    if not run.is_dir():
        return
    sweep_temporaries(run, RUN_NAMES)
    for folder in (path for path in run.iterdir() if path.is_dir() and not path.is_symlink()):
        if folder.name in (*RUN_NAMES, CORPUS_WORK) or _ASIDE.fullmatch(folder.name):
            # a cluster's jobs may be at work on a corpus that its own process has left
            quiet = QUIET_SECONDS if folder.name == CORPUS_WORK else 0
            for each in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
                sweep_temporaries(each, quiet_seconds=quiet)


def write_manifest(directory: Path) -> str:
    """List every file under `directory` with size and SHA-256 in its manifest; flush all; return the content hash."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        _sync(path)
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    content = hash_json({name: entry["sha256"] for name, entry in files.items()})
    write_atomic(directory / MANIFEST, json.dumps({"content": content, "files": files}, indent=1) + "\n")
    return content


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a complete directory, or None where there is none."""
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        return manifest
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def content_hash(directory: Path) -> str | None:
    """The hash of a complete directory's contents, or None when incomplete (a file missing or of another size)."""
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return None
    return str(manifest["content"])


def verify_directory(directory: Path) -> dict[str, Any]:
    """Check every file of a complete directory against its manifest and return the manifest.

    Raises:
        InputError: names the missing, altered or unlisted piece.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory}: incomplete (no readable {MANIFEST}); run the stage that makes it again")
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise InputError(
                f"{path}: missing, though {MANIFEST} lists it; restore it or run the stage again with --fresh"
            )
        if path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]:
            raise InputError(
                f"{path}: its bytes do not match the checksum in {MANIFEST} (altered or damaged); "
                "restore it or run the stage again with --fresh"
            )
    return manifest


@cache
def code_version() -> str:
    """Package version and, in a git checkout, the commit (with `+changes` when the tree differs from it)."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        )
        return f"{__version__} {commit.stdout.strip()}".strip() if commit.returncode == 0 else __version__
    except (OSError, subprocess.TimeoutExpired):
        return __version__


class Record:
    """The lineage of a run, `record.json`: one entry per stage that has ended."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "record.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self.stages = json.loads(self.path.read_text())["stages"]
            except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{self.path}: not a readable record ({error}); remove it to run every stage again"
                ) from error

    def enter(
        self,
        stage: str,
        *,
        key: str,
        inputs: Mapping[str, str],
        recipe: Mapping[str, Any],
        seed: int,
        seconds: float,
        outputs: Mapping[str, str],
        figures: Mapping[str, Any],
    ) -> None:
        """Write that `stage` ended: its key, `{input name: hash}`, `{output path: content hash}` and key figures."""
        self.stages[stage] = {
            "key": key,
            "inputs": dict(inputs),
            "outputs": dict(outputs),
            "recipe": dict(recipe),
            "seed": seed,
            "code": code_version(),
            "machine": machine.describe(),
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "figures": dict(figures),
        }
        write_atomic(self.path, json.dumps({"format": 1, "stages": self.stages}, indent=1) + "\n")
