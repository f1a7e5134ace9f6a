"""A sample is the same whatever the order, and every byte is as likely to be in it."""

import json
from hashlib import sha256
from pathlib import Path

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.measure.sampling import PIECE, HashSample, pieces_of


@given(st.lists(st.binary(min_size=1, max_size=30), unique=True, max_size=40), st.integers(1, 200), st.integers(0, 40))
def test_order_and_split_change_nothing_and_the_limit_holds(items: list[bytes], limit: int, cut: int) -> None:
    def sampled(order: list[bytes]) -> HashSample[bytes]:
        sample: HashSample[bytes] = HashSample(limit)
        for item in order:
            sample.offer(sha256(item).digest(), len(item), item)
        return sample

    whole, one, other = sampled(items), sampled(items[:cut]), sampled(items[cut:])
    assert whole.kept() == sampled(items[::-1]).kept()
    one.end_at(other.bound)
    for digest, item in other.kept():
        one.offer(digest, len(item), item)
    assert one.kept() == whole.kept()
    assert (one.bound, one.size) == (whole.bound, whole.size)
    by_digest = sorted(items, key=lambda item: sha256(item).digest())
    kept = [item for _, item in whole.kept()]
    assert kept == by_digest[: len(kept)]
    assert sum(map(len, kept)) <= limit
    assert len(kept) == len(items) or sum(map(len, by_digest[: len(kept) + 1])) > limit


def shard(corpus: Path, split: str, texts: list[str], number: int = 0) -> None:
    path = corpus / "documents" / f"{split}-{number:05d}.jsonl.zst"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        json.dumps({"id": f"{number}-{i}", "text": text, "source": "s", "genre": "web", "meta": {}})
        for i, text in enumerate(texts)
    )
    path.write_bytes(zstandard.ZstdCompressor().compress("".join(row + "\n" for row in rows).encode()))


def test_long_documents_are_sampled_in_pieces(tmp_path: Path) -> None:
    long = "".join(f"line {number}\n" for number in range(20_000))
    shard(tmp_path, "train", [long, *(f"short text {number} " * 40 for number in range(200))])
    everything = pieces_of(tmp_path, "train", 10**9)
    assert sorted(piece.text for piece in everything if piece.document == "s 0-0") == sorted(
        long[start : start + PIECE] for start in range(0, len(long), PIECE)
    )
    assert len(everything) == 200 + -(-len(long) // PIECE)
    few = pieces_of(tmp_path, "train", 80_000)
    assert 60_000 < sum(len(piece.text) for piece in few) <= 80_000
    assert few == everything[: len(few)]


def test_copies_count_once_and_all_shards_are_read(tmp_path: Path) -> None:
    shard(tmp_path, "train", ["one text"] * 3 + ["another"], 0)
    shard(tmp_path, "train", ["one text", "a third"], 1)
    assert sorted(piece.text for piece in pieces_of(tmp_path, "train", 1000)) == ["a third", "another", "one text"]
    assert pieces_of(tmp_path, "test", 1000) == []
