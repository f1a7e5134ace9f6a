"""The external sort: same order with and without spilling; shards rotate and lose nothing."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus import shuffle
from lmforge.corpus.decode import lines_of
from lmforge.corpus.shuffle import Entry, ShardWriter, Shuffle


@given(st.lists(st.binary(max_size=40), unique=True, max_size=60), st.integers(1, 2000))
@settings(max_examples=30, deadline=None)
def test_order_is_the_keys_spilled_or_not(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], buffer: int) -> None:
    folder = tmp_path_factory.mktemp("spill")
    entries = [Entry(sha256(line).digest()[:16], 0.5, 3, len(line), line) for line in lines]
    spilling, held = Shuffle(folder, buffer), Shuffle(folder)
    for entry in entries:
        spilling.add(entry)
        held.add(entry)
    assert list(spilling.sorted()) == list(held.sorted()) == sorted(entries)
    assert not list(folder.iterdir())


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
