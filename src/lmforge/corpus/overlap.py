"""Which texts say the same thing: exact duplicates."""

from __future__ import annotations

import hashlib


def text_digest(text: str) -> bytes:
    """SHA-256 of the text with each run of whitespace made one space: what decides duplicates, split, sampling and order.

    Texts that differ only in layout share a digest, so they never fall on both sides of the train/test line.
    """
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


class ExactDuplicates:
    """Remembers the digests it was given: about 100 bytes of memory for each distinct text."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, digest: bytes) -> bool:
        """Whether this `text_digest` is new; it is remembered (its first 16 bytes: a chance match below 1e-18 at 10^10 texts)."""
        before = len(self._seen)
        self._seen.add(digest[:16])
        return len(self._seen) > before

    def __len__(self) -> int:
        return len(self._seen)
