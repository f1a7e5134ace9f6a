"""Token shards in an object store → a copy in the user's cache, which is then memory-mapped like any other.

    s3://bucket/run/tokens ──index.json──▶ CACHE/lmforge/shards/SHA-256 of the index/ ◀──each file of the split, its
    SHA-256 checked──

Whatever fsspec can open serves: s3://, gs://, https://, file://, memory://. A file that is there already is not fetched
again; the index names every file's checksum, so another index is another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import fsspec

from lmforge.errors import InputError
from lmforge.progress import Bar
from lmforge.record import cache_directory, write_atomic

_PIECE = 1 << 22  # bytes copied at a time


def fetch_shards(address: str, split: str) -> Path:
    """A local folder with the index, the tokenizer and one split of the shards at `address`.

    Raises:
        InputError: no shards there, no access, no such split, or a file whose checksum is not that in the index (names
            it).
        LmforgeError: the disk is full.
    """
    store, root = _open_store(address)
    content = _read(store, root, address, "index.json")
    try:
        index = json.loads(content)
        files = index["splits"][split]["files"] if split in index["splits"] else []
        wanted = [("tokenizer.json", index["tokenizer_sha256"]), *file_hashes(files)]
        total = sum(file["tokens"] for file in files)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{address}/index.json: not a readable index of token shards ({error}); run the tokens stage again"
        ) from error
    folder = cache_directory() / "shards" / hashlib.sha256(content).hexdigest()
    missing = [(name, digest) for name, digest in wanted if not (folder / name).is_file()]
    with Bar(f"fetching {split}", total, "tok") as bar:
        sizes = {file["name"]: file["tokens"] for file in files}
        for name, digest in missing:
            _fetch(store, root, address, name, digest, folder)
            bar.step(sizes.get(name, 0), name)
    write_atomic(folder / "index.json", content)
    return folder


def _open_store(address: str) -> tuple[Any, str]:
    try:
        store, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{address}: cannot be opened ({error}); install what that kind of address needs, or copy the shards here"
        ) from error
    return store, root.rstrip("/")


def _read(store: Any, root: str, address: str, name: str) -> bytes:
    try:
        content: bytes = store.cat_file(f"{root}/{name}")
    except FileNotFoundError as error:
        raise InputError(
            f"{address}: no token shards here ({name} is missing); give the folder of a tokens stage"
        ) from error
    except OSError as error:
        raise InputError(
            f"{address}/{name}: cannot be read ({error}); check the address and your access to it"
        ) from error
    return content


def _fetch(store: Any, root: str, address: str, name: str, digest: str, folder: Path) -> None:
    """Copy one file under a temporary name, and rename it once its checksum is right."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    digester = hashlib.sha256()
    try:
        with store.open(f"{root}/{name}", "rb") as source, temporary.open("wb") as target:
            while piece := source.read(_PIECE):
                digester.update(piece)
                target.write(piece)
        if digester.hexdigest() != digest:
            raise InputError(
                f"{address}/{name}: its bytes do not match the checksum in index.json (altered or damaged); "
                "restore it or run the tokens stage again"
            )
        temporary.replace(folder / name)
    except OSError as error:
        cause = "missing" if isinstance(error, FileNotFoundError) else f"could not be copied ({error})"
        raise InputError(f"{address}/{name}: {cause}; restore it, or make room in {folder}") from error
    finally:
        temporary.unlink(missing_ok=True)


def file_hashes(files: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, SHA-256) of every file of a split's entry in the index."""
    kinds = [(f"{kind}name", f"{kind}sha256") for kind in ("", "documents_", "mask_", "images_", "places_")]
    return [(file[name], file[digest]) for file in files for name, digest in kinds if name in file]
