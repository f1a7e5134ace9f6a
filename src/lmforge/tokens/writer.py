"""Writes one split's documents as shards; their form is told in `lmforge.tokens.shards`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.record import hash_file
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import token_dtype

SHARD_TOKENS = 64_000_000  # a shard is ended by the document that reaches this


class TokenWriter:
    """Writes one split's documents as shards into `folder` and counts what goes by."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.tokenizer = folder, split, tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.tokens = self.documents = self.bytes = 0
        self.genres: dict[str, tuple[int, int]] = {}  # genre: (bytes, tokens without end of text)
        self.used = np.zeros(tokenizer.vocab_size, dtype=bool)  # which tokens have occurred
        self.files: list[dict[str, Any]] = []
        self._open()

    def _open(self) -> None:
        self._name = f"{self.split}-{len(self.files):05d}"
        self._file = (self.folder / f"{self._name}.bin").open("wb")
        self._digest = hashlib.sha256()
        self._rows: list[tuple[int, int, int]] = []
        self._in_shard = 0

    def add(self, documents: list[dict[str, Any]]) -> int:
        """Append documents; returns their UTF-8 bytes."""
        before = self.bytes
        for document, tokens in zip(documents, self.tokenizer.encode_batch([each["text"] for each in documents]), strict=True):
            if self._in_shard >= SHARD_TOKENS:
                self._end()
                self._open()
            size = len(document["text"].encode("utf-8", "replace"))
            row = np.array([self.tokenizer.end_of_text, *tokens], dtype=self.dtype)
            data = row.tobytes()
            self._file.write(data)
            self._digest.update(data)
            self.used[row] = True
            self._rows.append((self._in_shard, len(row), size))
            self._in_shard += len(row)
            self.tokens += len(row)
            self.documents += 1
            self.bytes += size
            genre = document.get("genre", "unknown")
            seen = self.genres.get(genre, (0, 0))
            self.genres[genre] = (seen[0] + size, seen[1] + len(tokens))
        return self.bytes - before

    def _end(self) -> None:
        self._file.close()
        documents = self.folder / f"{self._name}.docs.npy"
        np.save(documents, np.array(self._rows, dtype="<i8").reshape(-1, 3))
        self.files.append({
            "name": f"{self._name}.bin", "tokens": self._in_shard, "documents": len(self._rows),
            "bytes": sum(size for _, _, size in self._rows), "sha256": self._digest.hexdigest(),
            "documents_name": documents.name, "documents_sha256": hash_file(documents),
        })  # fmt: skip

    def close(self) -> None:
        """End the last shard."""
        self._end()


