"""Shards in an object store are copied to the cache by checksum and read from there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lmforge.errors import InputError
from lmforge.tokens import remote as module
from lmforge.tokens.remote import fetch_shards
from lmforge.tokens.shards import Shards


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lmforge" / "shards"


@pytest.fixture
def memory(built: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    store.put(str(built), "/bucket/tokens", recursive=True)
    yield "memory://bucket/tokens"
    store.rm("/bucket", recursive=True)


def test_remote_shards_are_the_local_ones(built: Path, cache: Path, memory: str) -> None:
    for address in (memory, f"file://{built}"):
        for split in ("train", "valid"):
            here, there = Shards.open(built, split), Shards.open(address, split)
            assert np.array_equal(here.read(0, here.tokens), there.read(0, there.tokens))
            assert np.array_equal(here.documents, there.documents)
            assert here.groups == there.groups
            there.verify()
    (folder,) = cache.iterdir()  # the same index, so the same copy
    assert not [*folder.glob("test-*")]


def test_what_is_there_is_not_fetched_again(cache: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_shards(memory, "train")
    fetched: list[str] = []
    real = module._fetch
    monkeypatch.setattr(module, "_fetch", lambda *arguments: (fetched.append(arguments[3]), real(*arguments)))
    fetch_shards(memory, "train")
    assert fetched == []
    (folder / "train-00001.bin").unlink()
    fetch_shards(memory, "train")
    assert fetched == ["train-00001.bin"]


def test_an_altered_remote_file_is_named_and_not_kept(cache: Path, memory: str) -> None:
    store = fsspec.filesystem("memory")
    data = bytearray(store.cat_file("/bucket/tokens/train-00001.bin"))
    data[3] ^= 1
    store.pipe_file("/bucket/tokens/train-00001.bin", bytes(data))
    with pytest.raises(
        InputError,
        match=r"^memory://bucket/tokens/train-00001\.bin: its bytes do not match the checksum in index\.json",
    ):
        Shards.open(memory, "train")
    (folder,) = cache.iterdir()
    assert "train-00001.bin" not in os.listdir(folder)
    assert not [*folder.glob(".*")]


def test_a_missing_remote_file_is_named(cache: Path, memory: str) -> None:
    fsspec.filesystem("memory").rm("/bucket/tokens/train-00002.bin")
    with pytest.raises(InputError, match=r"^memory://bucket/tokens/train-00002\.bin: missing; restore it"):
        Shards.open(memory, "train")


def test_what_is_no_place_of_shards_is_refused(built: Path, cache: Path, memory: str) -> None:
    with pytest.raises(InputError, match=r"^memory://bucket/other: no token shards here \(index\.json is missing\)"):
        Shards.open("memory://bucket/other", "train")
    with pytest.raises(InputError, match=r"^nowhere://bucket: cannot be opened"):
        Shards.open("nowhere://bucket", "train")
    with pytest.raises(InputError, match="has no split 'dev'"):
        Shards.open(memory, "dev")
    fsspec.filesystem("memory").pipe_file("/bucket/tokens/index.json", b"{")
    with pytest.raises(InputError, match=r"^memory://bucket/tokens/index\.json: not a readable index"):
        Shards.open(memory, "train")


def test_a_path_as_text_is_a_folder(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "copy")
    assert Shards.open(str(tmp_path / "copy"), "train").tokens == Shards.open(built, "train").tokens
