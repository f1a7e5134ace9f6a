"""Random samples that no order of input and no split over workers changes: the choice is by hash."""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

from lmforge.corpus.sources.decode import lines_of

# characters: a longer document is sampled in pieces, so that every byte of the corpus is as likely to be in the sample
PIECE = 16_384
MOST_SHARDS = 8  # read for a sample, evenly spread; their order within the corpus is random already
_COMPLEMENT = bytes(range(255, -1, -1))
Held = TypeVar("Held")


class HashSample(Generic[Held]):
    """What came with the smallest digests, as many as have `limit` bytes together: the first that is too much ends the
    sample.

    `bound` is the digest of that first one, None as long as everything fits.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.bound: bytes | None = None
        # a heap; digests inverted, so that the largest digest is at its top
        self._kept: list[tuple[bytes, int, Held]] = []

    def offer(self, digest: bytes, size: int, held: Held) -> None:
        """Take `held` of `size` bytes, or not; `digest` is uniform."""
        if self.bound is not None and digest >= self.bound:
            return
        heapq.heappush(self._kept, (digest.translate(_COMPLEMENT), size, held))
        self.size += size
        while self.size > self.limit:
            self._drop()

    def end_at(self, bound: bytes | None) -> None:
        """Drop what has this digest or a larger one, now and later: another sample of the same text ended there."""
        if bound is None or (self.bound is not None and bound >= self.bound):
            return
        while self._kept and self._kept[0][0].translate(_COMPLEMENT) >= bound:
            self._drop()
        self.bound = bound

    def _drop(self) -> None:
        inverted, size, _ = heapq.heappop(self._kept)
        self.bound = inverted.translate(_COMPLEMENT)
        self.size -= size

    def kept(self) -> list[tuple[bytes, Held]]:
        """(digest, what came with it) in order of the digests."""
        return [(digest.translate(_COMPLEMENT), held) for digest, _, held in sorted(self._kept, reverse=True)]


@dataclasses.dataclass(frozen=True, order=True)
class SampledPiece:
    """A document, or 16,384 characters of a longer one."""

    document: str
    genre: str
    text: str


def pieces_of(corpus_dir: Path, split: str, limit: int) -> list[SampledPiece]:
    """A sample of about `limit` bytes of a split's text, in random order; copies of a document count once. Empty where
    there is none."""
    sample: HashSample[SampledPiece] = HashSample(limit)
    for document in _documents(corpus_dir, split):
        text, name = document["text"], f"{document['source']} {document['id']}"
        for start in range(0, max(1, len(text)), PIECE):
            part = text[start : start + PIECE]
            data = part.encode("utf-8", "replace")
            digest = blake2b(data, digest_size=16, person=b"analysis").digest()
            sample.offer(digest, len(data), SampledPiece(name, document["genre"], part))
    offered = sample.kept()
    return [piece for number, (digest, piece) in enumerate(offered) if not number or offered[number - 1][0] != digest]


def _documents(corpus_dir: Path, split: str) -> Iterator[dict[str, str]]:
    shards = sorted((corpus_dir / "documents").glob(f"{split}-*.jsonl.zst"))
    read = min(MOST_SHARDS, len(shards))
    for number in range(read):
        for _, line in lines_of(shards[number * len(shards) // read]):
            yield json.loads(line)
