"""Writes one split's documents as shards; their form is told in `lmforge.tokens.shards`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.record import hash_file
from lmforge.tokens.documents import Encoded
from lmforge.tokens.images import PictureWriter
from lmforge.tokens.shards import token_dtype

SHARD_TOKENS = 64_000_000  # a shard is ended by the document that reaches this


class Names:
    """The numbers of sources and genres, in the order they are met."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}
        self.genres: dict[str, int] = {}

    def of(self, document: Encoded) -> tuple[int, int]:
        """(number of the source, number of the genre)."""
        return self.sources.setdefault(document.source, len(self.sources)), self.genres.setdefault(
            document.genre, len(self.genres)
        )


class TokenWriter:
    """Writes one split's documents as shards into `folder` and counts what goes by. With `grouped`, each kind into
    shards of its own."""

    def __init__(self, folder: Path, split: str, vocab_size: int, names: Names, grouped: bool) -> None:
        self.folder, self.split, self.names, self.grouped = folder, split, names, grouped
        self.tokens = self.documents = self.bytes = self.uncounted = self.missing = 0
        self.genres: dict[str, tuple[int, int]] = {}  # genre: (bytes, tokens without those that stand before documents)
        self.begins: set[int] = set()  # what stands before documents
        self.used = np.zeros(vocab_size, dtype=bool)  # which tokens have occurred
        self._opened = 0
        self._open: dict[tuple[int, int] | None, _Shard] = {}
        self._entries: list[dict[str, Any]] = []

    def add(self, documents: list[Encoded]) -> int:
        """Append documents; returns their UTF-8 bytes."""
        before = self.bytes
        for document in documents:
            source, genre = self.names.of(document)
            kind = (source, genre) if self.grouped else None
            shard = self._open.get(kind)
            if shard is None or shard.tokens >= SHARD_TOKENS:
                shard = self._open[kind] = self._next(kind, shard)
            shard.add(document, source, genre)
            self.used[document.tokens] = True
            self.begins.add(int(document.tokens[0]))
            self.tokens += len(document.tokens)
            self.documents += 1
            self.bytes += document.bytes
            self.missing += document.missing
            self.uncounted += 0 if document.counted is None else int((~document.counted).sum())
            seen = self.genres.get(document.genre, (0, 0))
            self.genres[document.genre] = (seen[0] + document.bytes, seen[1] + len(document.tokens) - 1)
        return self.bytes - before

    def _next(self, kind: tuple[int, int] | None, before: _Shard | None) -> _Shard:
        """A new shard after `before`, which is ended."""
        if before is not None:
            self._entries.append(before.end())
        label = {} if kind is None else {"source": kind[0], "genre": kind[1]}
        name = f"{self.split}-{self._opened:05d}"
        self._opened += 1
        return _Shard(self.folder, name, token_dtype(len(self.used)), label, before.ended_counted if before else True)

    def close(self) -> None:
        """End the last shards."""
        if not self._opened:
            self._open[None] = self._next(None, None)
        self._entries += [shard.end() for shard in self._open.values()]
        self._open.clear()

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files' entries in the index, those of a kind together."""
        return sorted(self._entries, key=lambda file: (file.get("source", 0), file.get("genre", 0), file["name"]))


class _Shard:
    """One file of tokens being written, with its document index and its mask."""

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype[Any], label: dict[str, int], before_counted: bool
    ) -> None:
        self.folder, self.name, self.dtype, self.label = folder, name, dtype, label
        self.tokens = 0
        # whether the end of the document before counts: that is told by the token that ends it
        self.ended_counted = before_counted
        self._file = (folder / f"{name}.bin").open("wb")
        self._digest = hashlib.sha256()
        self._pictures = PictureWriter(folder, name)
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._uncounted: list[np.ndarray[Any, Any]] = []  # places of tokens that do not count

    def add(self, document: Encoded, source: int, genre: int) -> None:
        data = document.tokens.astype(self.dtype, copy=False).tobytes()
        self._file.write(data)
        self._digest.update(data)
        if not self.ended_counted:
            self._uncounted.append(np.array([self.tokens]))
        if document.counted is not None:
            self._uncounted.append(np.flatnonzero(~document.counted) + self.tokens)
        self.ended_counted = document.end_counted
        for place, image in document.images:
            self._pictures.add(self.tokens + place, image)
        self._rows.append((self.tokens, len(document.tokens), document.bytes, source, genre))
        self.tokens += len(document.tokens)

    def end(self) -> dict[str, Any]:
        """Write what is left; the file's entry in the index."""
        self._file.close()
        documents = self.folder / f"{self.name}.docs.npy"
        np.save(documents, np.array(self._rows, dtype="<i8").reshape(-1, 5).T.copy())
        entry = {
            "name": f"{self.name}.bin", "tokens": self.tokens, "documents": len(self._rows),
            "bytes": sum(row[2] for row in self._rows), "sha256": self._digest.hexdigest(),
            "documents_name": documents.name, "documents_sha256": hash_file(documents), **self.label,
            **self._pictures.end(),
        }  # fmt: skip
        if self._uncounted:
            mask = np.ones(self.tokens, dtype=bool)
            mask[np.concatenate(self._uncounted)] = False
            path = self.folder / f"{self.name}.mask"
            path.write_bytes(np.packbits(mask).tobytes())
            entry |= {"mask_name": path.name, "mask_sha256": hash_file(path)}
        return entry
