"""Shards are read anywhere, in any piece; damage is found and named."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmforge.errors import InputError
from lmforge.tokens.shards import Shards, token_dtype, verify_once


def test_reading_across_files_equals_reading_all(built: Path) -> None:
    shards = Shards.open(built, "train")
    index = json.loads((built / "index.json").read_text())
    files = [np.fromfile(built / file["name"], dtype="<u2") for file in index["splits"]["train"]["files"]]
    whole = np.concatenate(files).astype(np.int64)
    assert np.array_equal(shards.read(0, shards.tokens), whole)
    edge = len(files[0])
    places = [
        (0, 0),
        (edge, 0),
        (edge - 1, 2),
        (edge, 5),
        (edge - 1, len(files[1]) + 2),
        (shards.tokens, 0),
        (shards.tokens - 3, 3),
    ]
    generator = random.Random(0)
    for _ in range(100):
        start = generator.randrange(shards.tokens)
        places.append((start, generator.randrange(shards.tokens - start + 1)))
    for start, length in places:
        piece = shards.read(start, length)
        assert piece.dtype == np.int64
        assert np.array_equal(piece, whole[start : start + length])


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, -1), (0, 10**9), (10**9, 0)])
def test_reading_outside_the_split_is_refused(built: Path, start: int, length: int) -> None:
    with pytest.raises(IndexError, match="of the train split, which has"):
        Shards.open(built, "train").read(start, length)


def test_two_bytes_serve_as_far_as_they_reach() -> None:
    assert [token_dtype(size).itemsize for size in (257, 65_536, 65_537, 5_000_000)] == [2, 2, 4, 4]


def test_no_shards_and_no_such_split_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"nowhere: no token shards here \(index\.json is missing\); run the tokens stage first"
    ):
        Shards.open(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"index\.json: has no split 'dev'; it has test, train, valid"):
        Shards.open(built, "dev")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("name", "damage", "message"), [
    ("train-00001.bin", truncate, (
        r"train-00001\.bin: \d+ bytes, but index\.json says \d+ \(truncated or altered\); restore it"
    )),
    ("train-00001.bin", Path.unlink, r"train-00001\.bin: missing; restore it or run the tokens stage again"),
    ("tokenizer.json", truncate, r"tokenizer\.json: not the tokenizer these shards were made with"),
    ("tokenizer.json", Path.unlink, r"tokenizer\.json: not the tokenizer these shards were made with"),
    ("index.json", truncate, None),
    ("index.json", lambda path: path.write_text("{"), (
        r"index\.json: not a readable index of token shards .*; run the tokens stage again"
    )),
    ("index.json", lambda path: path.write_text("[]"), r"index\.json: not a readable index of token shards"),
])  # fmt: skip
def test_damage_is_found_at_opening_and_named(
    built: Path, name: str, damage: Callable[[Path], Any], message: str | None
) -> None:
    damage(built / name)
    if message is None:  # the last byte of the index is only its line end
        assert Shards.open(built, "train").tokens
        return
    with pytest.raises(InputError, match=message):
        Shards.open(built, "train")


def test_an_index_that_contradicts_itself_is_refused(built: Path) -> None:
    index = json.loads((built / "index.json").read_text())
    index["splits"]["train"]["tokens"] += 1
    (built / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"index\.json: its files hold \d+ tokens, not \d+; run the tokens stage again"
    ):
        Shards.open(built, "train")


@pytest.mark.parametrize("name", ["train-00002.bin", "train-00002.docs.npy"])
def test_one_changed_byte_is_found_by_the_checksum(built: Path, name: str) -> None:
    data = bytearray((built / name).read_bytes())
    data[-1] ^= 1
    (built / name).write_bytes(bytes(data))
    shards = Shards.open(built, "train")
    with pytest.raises(
        InputError, match=rf"{name}: its bytes do not match the checksum in index\.json \(altered or damaged\)"
    ):
        shards.verify()


@pytest.mark.parametrize(
    "damage", [truncate, Path.unlink, lambda path: np.save(path, np.zeros((5, 1000), dtype=np.int64))]
)
def test_a_damaged_document_index_is_refused(built: Path, damage: Callable[[Path], Any]) -> None:
    damage(built / "train-00001.docs.npy")
    with pytest.raises(
        InputError, match=r"train-00001\.docs\.npy: not a readable document index .*; run the tokens stage again"
    ):
        _ = Shards.open(built, "train").documents


def test_shards_of_another_format_are_refused(built: Path) -> None:
    index = json.loads((built / "index.json").read_text())
    (built / "index.json").write_text(json.dumps(index | {"format": 1}))
    with pytest.raises(
        InputError, match=r"index\.json: shards of format 1, this version reads format 3; run the tokens stage again"
    ):
        Shards.open(built, "train")


def test_shards_are_verified_once_and_again_when_a_file_was_touched(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = [Shards.open(built, split) for split in ("train", "valid")]
    read: list[str] = []
    real = Shards.verify

    def verify(self: Shards) -> None:
        read.append(self.split)
        real(self)

    monkeypatch.setattr(Shards, "verify", verify)
    for _ in range(2):
        verify_once(splits, tmp_path / "verified")
    assert read == ["train", "valid"]
    data = bytearray((built / "train-00001.bin").read_bytes())
    data[0] ^= 1
    (built / "train-00001.bin").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"train-00001\.bin: its bytes do not match"):
        verify_once(splits, tmp_path / "verified")
    # it is not taken for verified afterwards
    with pytest.raises(InputError, match=r"train-00001\.bin: its bytes do not match"):
        verify_once(splits, tmp_path / "verified")
