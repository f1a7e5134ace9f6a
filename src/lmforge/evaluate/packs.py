"""Packs: benchmarks as versioned folders on this machine, so that an evaluation opens no connection.

    lmforge packs fetch NAME ─▶ PACKS/NAME/pack.json (source, licence, splits, rows), *.jsonl, manifest.json (SHA-256)
    DATA/benchmarks/NAME     ─▶ the same, with SOURCE.md and one MANIFEST.tsv for all
    open_pack(NAME, SPLIT)   ─▶ rows

A pack is looked for in LMFORGE_PACKS (default: packs/ in this user's cache), then in LMFORGE_DATA/benchmarks (default:
shared/data beside the checkout, or beside the working directory). A file that is not what its manifest says is refused.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from lmforge.corpus.sources.decode import lines_of
from lmforge.errors import InputError
from lmforge.record import MANIFEST, cache_directory, hash_file, hash_json, read_manifest

Row = dict[str, Any]
INFORMATION = "pack.json"  # source, licence and splits of a pack that was fetched
# names that stand for one another where a pack has one of them only
ALIKE = (("validation", "dev", "val"),)


@dataclasses.dataclass(frozen=True)
class Known:
    """What packs.toml says of a pack: `config` "*": all configurations; `rows` names what makes a row ours."""

    name: str
    licence: str
    hub: str
    splits: Mapping[str, str]
    config: str | None = None
    rows: str | None = None


@dataclasses.dataclass(frozen=True)
class PackFile:
    """One split: its file, rows and SHA-256 as the manifest has them (rows None: not said)."""

    path: Path
    sha256: str
    rows: int | None


@dataclasses.dataclass(frozen=True)
class Pack:
    """A pack that is here."""

    name: str
    directory: Path
    source: str
    licence: str
    files: Mapping[str, PackFile]

    @property
    def version(self) -> str:
        """The first digits of the hash of all files' hashes."""
        return hash_json({split: file.sha256 for split, file in self.files.items()})[:12]

    def split(self, name: str) -> PackFile:
        """The file of a split; "dev" and "validation" stand for one another, and a pack's only file for any.

        Raises:
            InputError: no such split.
        """
        if name in self.files:
            return self.files[name]
        for names in ALIKE:
            if name in names and (there := [each for each in names if each in self.files]):
                return self.files[there[0]]
        holding = [each for each in self.files if name in each.split("_")]
        if len(holding) == 1 or (len(self.files) == 1 and name == "test"):
            return self.files[(holding or list(self.files))[0]]
        raise InputError(
            f"pack {self.name}: no split {name!r}; {self.directory} has {', '.join(self.files)}; another copy of the "
            f"pack may have it: lmforge packs fetch {self.name}"
        )


@cache
def known_packs() -> dict[str, Known]:
    """Every pack that packs.toml names."""
    content = tomllib.loads(Path(__file__).with_name("packs.toml").read_text())
    return {name: Known(name=name, **each) for name, each in content.items()}


def pack_roots() -> list[Path]:
    """Folders that packs are looked for in, the first first; those that are there."""
    data = os.environ.get("LMFORGE_DATA")
    shared = [Path(data)] if data else [Path(__file__).parents[4] / "shared" / "data", Path("../shared/data")]
    own = Path(os.environ.get("LMFORGE_PACKS") or cache_directory() / "packs")
    return [folder for folder in (own, *(each / "benchmarks" for each in shared)) if folder.is_dir()]


def find_pack(name: str, roots: list[Path] | None = None) -> Pack:
    """The pack of that name.

    Raises:
        InputError: not on this machine (the message is the command that makes it), or not readable.
    """
    for root in pack_roots() if roots is None else roots:
        folder = root / name
        if (folder / INFORMATION).is_file():
            return _fetched(name, folder)
        if (folder / "SOURCE.md").is_file():
            return _shared(name, root, folder)
    if name not in known_packs():
        raise InputError(f"pack {name}: no such pack; known are {', '.join(known_packs())}")
    raise InputError(f"pack {name}: not on this machine; make it with: lmforge packs fetch {name}")


def open_pack(name: str, split: str, roots: list[Path] | None = None) -> list[Row]:
    """The rows of a split, in the file's order, its checksum compared first.

    Raises:
        InputError: no such pack or split, a file that was altered (names it), or a line that is no JSON object.
    """
    file = find_pack(name, roots).split(split)
    check_file(name, file)
    rows = []
    for number, line in lines_of(file.path):
        try:
            row = orjson.loads(line)
            assert isinstance(row, dict)
        except (ValueError, AssertionError) as error:
            raise InputError(
                f"{file.path}:{number}: no JSON object; make the pack again: lmforge packs fetch {name}"
            ) from error
        rows.append(row)
    return rows


def check_file(name: str, file: PackFile) -> None:
    """Compare a file with its manifest.

    Raises:
        InputError: gone or altered.
    """
    state = "gone" if not file.path.is_file() else "" if hash_file(file.path) == file.sha256 else "altered"
    if state:
        raise InputError(
            f"{file.path}: {state} since its manifest was written; make the pack again: lmforge packs fetch {name}"
        )


def packs_here() -> dict[str, Pack | None]:
    """Every known pack, and those of other names in the folders: the pack, or None where it is not here."""
    names = dict.fromkeys(known_packs())
    for root in pack_roots():
        for mark in (INFORMATION, "SOURCE.md"):
            names |= dict.fromkeys(str(path.parent.relative_to(root)) for path in sorted(root.glob(f"**/{mark}")))
    result: dict[str, Pack | None] = {}
    for name in sorted(names):
        try:
            result[name] = find_pack(name)
        except InputError:
            result[name] = None
    return result


def _fetched(name: str, folder: Path) -> Pack:
    try:
        about = orjson.loads((folder / INFORMATION).read_bytes())
        listed = (read_manifest(folder) or {})["files"]
        files = {
            split: PackFile(folder / each["file"], listed[each["file"]]["sha256"], each["rows"])
            for split, each in about["splits"].items()
        }
        return Pack(name, folder, about["source"], about["licence"], files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: {INFORMATION} or {MANIFEST} cannot be read ({error!r}); make the pack again: "
            f"lmforge packs fetch {name}"
        ) from error


def _shared(name: str, root: Path, folder: Path) -> Pack:
    """A pack that describes itself in SOURCE.md, its checksums in the one MANIFEST.tsv beside the packs' folder."""
    text = (folder / "SOURCE.md").read_text(encoding="utf-8", errors="replace")
    source = "; ".join(re.findall(r"^- (.+)$", text.partition("Licence")[0], re.MULTILINE))
    licence = re.search(r"^Licence[^:]*: *(.+)$", text, re.MULTILINE)
    sums = _checksums(root)
    files: dict[str, PackFile] = {}
    for path in sorted(folder.glob("*.jsonl*")):
        key = path.relative_to(root.parent).as_posix()
        if key not in sums:
            raise InputError(f"{path}: not in {root.parent / 'MANIFEST.tsv'}; add it there, or move the file away")
        files[_split_of(path, files)] = PackFile(path, *sums[key])
    return Pack(name, folder, source, licence[1].strip() if licence else "not stated", files)


def _split_of(path: Path, others: Mapping[str, Any]) -> str:
    """What a shared file's split is called: the first word of its name that says so, with what sets it apart."""
    stem = path.name.partition(".")[0] if ".jsonl" not in path.name else path.name.partition(".jsonl")[0]
    words = {"train": "train", "validation": "validation", "val": "validation", "dev": "dev", "test": "test"}
    head, _, rest = stem.partition("_")
    version = re.match(r"(v\d)", rest)
    name = words.get(head, stem) + (f"_{version[1]}" if version else "")
    return stem if name in others else name


@cache
def _sums_of(manifest: Path, changed: int) -> dict[str, tuple[str, int | None]]:
    lines = [line.split("\t") for line in manifest.read_text().splitlines()]
    places = {title: place for place, title in enumerate(lines[0])}
    return {
        line[places["path"]]: (
            line[places["sha256"]],
            int(line[places["rows"]]) if line[places["rows"]].isdigit() else None,
        )
        for line in lines[1:]
    }


def _checksums(root: Path) -> dict[str, tuple[str, int | None]]:
    manifest = root.parent / "MANIFEST.tsv"
    try:
        return _sums_of(manifest, manifest.stat().st_mtime_ns)
    except (OSError, KeyError, IndexError) as error:
        raise InputError(f"{manifest}: the packs' checksums cannot be read ({error!r}); restore it") from error
