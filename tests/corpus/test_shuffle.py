"""The shuffle: every shard holds its range of keys in order, whatever the runs; nothing is lost."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus import shuffle
from lmforge.corpus.shuffle import Entry, Scatter, ShardCounts, ShardWriter, gathered, write_shard
from lmforge.corpus.sources.decode import lines_of


@given(st.lists(st.binary(max_size=40), unique=True, max_size=60), st.integers(1, 2000), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_order_is_the_keys_whatever_the_runs(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], held: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    shards = ShardCounts(("train",), (count,))
    entries = [Entry(sha256(line).digest()[:16], len(line), line) for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "RUN_BYTES", held)
        for task in range(2):
            (folder / str(task)).mkdir()
            scatter = Scatter(folder / str(task), shards.total)
            for entry in entries[task::2]:
                scatter.add(shards.part("train", entry.key), entry)
            scatter.close()
    entries_read = [entry for shard in range(count) for entry in gathered([folder / "0", folder / "1"], shard)]
    assert entries_read == sorted(entries)


def test_shards_are_numbered_split_after_split() -> None:
    shards = ShardCounts.holding({"train": 10 * shuffle.SHARD_BYTES, "valid": 5, "test": 2 * shuffle.SHARD_BYTES})
    assert shards.counts == (10, 1, 2)
    assert [shards.file_name(number) for number in (0, 9, 10, 12)] == [
        "train-00000.jsonl.zst", "train-00009.jsonl.zst", "valid-00000.jsonl.zst", "test-00001.jsonl.zst",
    ]  # fmt: skip
    places = [
        shards.part(split, key)
        for split, key in (("train", bytes(16)), ("train", b"\xff" * 16), ("test", b"\x80" + bytes(15)))
    ]
    assert [place // shuffle.PARTS for place in places] == [0, 9, 12]


def test_a_shard_holds_its_lines(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.jsonl.zst", [Entry(bytes(16), 1, json.dumps(number).encode() + b"\n") for number in range(25)]
    )
    assert [int(line) for _, line in lines_of(tmp_path / "a.jsonl.zst")] == list(range(25))


def test_shards_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "SHARD_BYTES", 100)
    writer = ShardWriter(tmp_path / "documents", "train")
    for number in range(25):
        writer.write(json.dumps(number).encode() + b"\n", 10)
    writer.close()
    shards = sorted((tmp_path / "documents").iterdir())
    assert [shard.name for shard in shards] == [f"train-0000{number}.jsonl.zst" for number in range(3)]
    assert [int(line) for shard in shards for _, line in lines_of(shard)] == list(range(25))
    assert (writer.documents, writer.bytes) == (25, 250)
