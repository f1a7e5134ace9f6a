"""Copies of checkpoints in an object store (any address that fsspec understands: s3://, gs://, file://), as a second
place to go on from.

A copy is complete when its manifest is there, which is put last and removed first: what was cut short is passed over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fsspec

from lmforge.errors import InputError, LmforgeError
from lmforge.progress import log
from lmforge.record import MANIFEST, atomic_directory, verify_directory

_NAME = re.compile(r"step-\d{8}$")


def _open(store: str) -> tuple[Any, str]:
    try:
        system, path = fsspec.core.url_to_fs(store)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"train.store: {store}: {error}; give an address that fsspec understands, such as s3://bucket/run"
        ) from error
    return system, str(path).rstrip("/")


def put(checkpoint: Path, store: str) -> None:
    """Copy a complete checkpoint.

    Raises:
        LmforgeError: the store does not take it; the checkpoint itself is safe here.
    """
    system, root = _open(store)
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != MANIFEST)
    try:
        system.makedirs(f"{root}/{checkpoint.name}", exist_ok=True)
        for name in (*names, MANIFEST):
            system.put_file(str(checkpoint / name), f"{root}/{checkpoint.name}/{name}")
    except OSError as error:
        raise LmforgeError(
            f"{store}: {checkpoint.name} could not be copied there ({error}); it is safe in {checkpoint}. Mend access "
            "to the store, or leave train.store out, and run the same command again"
        ) from error


def remove(store: str, name: str) -> None:
    """Take a checkpoint's copy away, its manifest first."""
    system, root = _open(store)
    if system.exists(f"{root}/{name}/{MANIFEST}"):
        system.rm_file(f"{root}/{name}/{MANIFEST}")
    if system.exists(f"{root}/{name}"):
        system.rm(f"{root}/{name}", recursive=True)


def fetch_newest(store: str, directory: Path) -> None:
    """Bring the newest complete checkpoint of a store into `directory`; nothing when it has none.

    Raises:
        InputError: what came does not match its checksums.
        LmforgeError: the store does not answer, or the disk is full.
    """
    system, root = _open(store)
    try:
        entries = system.ls(root, detail=False) if system.exists(root) else []
        whole = sorted(
            name
            for path in entries
            if _NAME.match(name := str(path).rstrip("/").rsplit("/", 1)[-1])
            and system.exists(f"{root}/{name}/{MANIFEST}")
        )
        if not whole:
            beside = str(root).rpartition("/")[0]
            if entries == [] and system.exists(beside) and system.ls(beside, detail=False):
                log(f"train: {store} has no checkpoint of this training; those of others beside it are left alone")
            return
        log(f"train: no checkpoint here; fetching {whole[-1]} from {store}")
        with atomic_directory(directory / whole[-1]) as temporary:
            manifest = json.loads(system.cat_file(f"{root}/{whole[-1]}/{MANIFEST}"))
            for name in (*manifest["files"], MANIFEST):
                system.get_file(f"{root}/{whole[-1]}/{name}", str(temporary / name))
            verify_directory(temporary)
    except OSError as error:
        raise LmforgeError(
            f"{store}: could not be read ({error}); mend access to it, or leave train.store out"
        ) from error
