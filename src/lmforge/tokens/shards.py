"""Documents → token shards on disk, and the memory-mapped reader of them.

    corpus/documents ──sample──▶ vocabulary ─┐
                     └──every document───────┴──encode──▶ {split}-NNNNN.bin, {split}-NNNNN.docs.npy, index.json, tokenizer.json

A shard is one little-endian array of token ids, uint16 where the vocabulary has at most 65,536 tokens and uint32 beyond. A document is
[end of text, its tokens …]: the end-of-text token stands before each document, so it is what every text is predicted from and what a
model learns to give when a text has ended. A document is never split between shards.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.build import SPLITS, read_documents
from lmforge.errors import InputError
from lmforge.progress import Bar, say
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, hash_file
from lmforge.tokens.bpe import Tokenizer, train_tokenizer

INDEX, TOKENIZER = "index.json", "tokenizer.json"
SHARD_TOKENS = 64_000_000  # a shard is ended by the document that reaches this
BATCH_CHARS = 4_000_000  # text encoded at a time
Array = NDArray[np.int64]


def build_tokens(recipe: Recipe, corpus_dir: Path, out: Path) -> dict[str, Any]:
    """Learn the vocabulary from the training split alone, encode every split into `out`, return the figures.

    Figures: vocab_size; tokens_, documents_ and bytes_ of train, valid and test; bytes_per_token of the training text and
    bytes_per_token_held_out (UTF-8 bytes over tokens, end-of-text tokens not counted), bytes_per_token_by_genre (all splits);
    vocabulary_used, the share of the vocabulary that occurs in the training split; sample_bytes the vocabulary was learned from.

    Raises:
        InputError: a vocabulary larger than the texts support, a split with less than one row of `tokens.context` + 1 tokens, a
            damaged or missing corpus, no permission to write.
        LmforgeError: the disk is full. In every case `out` stays as it was.
    """
    with atomic_directory(out) as folder:
        training = (document["text"] for document in read_documents(corpus_dir, "train"))
        texts, sampled, train_bytes = sample_texts(training, recipe.tokens.sample_bytes)
        say(f"tokens: learning {recipe.tokens.vocab_size:,} tokens from {sampled / 1e6:.1f} MB of {train_bytes / 1e6:.1f} MB")
        tokenizer = train_tokenizer(texts, recipe.tokens.vocab_size)
        del texts
        tokenizer.save(folder / TOKENIZER)
        writers = {}
        with Bar("tokens", train_bytes / (1 - recipe.corpus.holdout), "B") as bar:
            for split in SPLITS:
                writers[split] = writer = TokenWriter(folder, split, tokenizer)
                for batch in _batches(read_documents(corpus_dir, split)):
                    bar.step(writer.add(batch), split)
                writer.close()
                _check_enough(writer, recipe.tokens.context)
        index = {
            "format": 1, "vocab_size": tokenizer.vocab_size, "dtype": _dtype(tokenizer.vocab_size).name,
            "tokenizer_sha256": tokenizer.sha256,
            "splits": {
                split: {"tokens": writer.tokens, "documents": writer.documents, "bytes": writer.bytes, "files": writer.files}
                for split, writer in writers.items()
            },
        }  # fmt: skip
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return {**_figures(tokenizer, writers), "sample_bytes": sampled}


def sample_texts(texts: Iterable[str], most: int) -> tuple[list[str], int, int]:
    """(texts spread evenly over `texts`, their UTF-8 bytes, the bytes of all): every text where all fit in `most` bytes, else every
    2nd, 4th, 8th … text, the densest that fits, and at least one. One pass that holds no more than it may return."""
    kept: list[tuple[str, int]] = []
    held = total = 0
    stride = 1
    for number, text in enumerate(texts):
        size = len(text.encode("utf-8", "replace"))
        total += size
        if number % stride:
            continue
        kept.append((text, size))
        held += size
        while held > most and len(kept) > 1:
            stride *= 2
            kept = kept[::2]
            held = sum(size for _, size in kept)
    return [text for text, _ in kept], held, total


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document["text"])
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _check_enough(writer: TokenWriter, context: int) -> None:
    if writer.tokens < context + 1:
        more = "" if writer.split == "train" else ", raise corpus.holdout"
        raise InputError(
            f"corpus: the {writer.split} split holds {writer.tokens} tokens, less than one row of {context + 1} "
            f"(tokens.context + 1); add texts{more} or lower tokens.context"
        )


def _figures(tokenizer: Tokenizer, writers: dict[str, TokenWriter]) -> dict[str, Any]:
    genres: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for writer in writers.values():
        for genre, (size, tokens) in writer.genres.items():
            genres[genre][0] += size
            genres[genre][1] += tokens
    held_out = [writers[split] for split in SPLITS if split != "train"]
    train = writers["train"]
    return {
        "vocab_size": tokenizer.vocab_size,
        **{f"tokens_{split}": writer.tokens for split, writer in writers.items()},
        **{f"documents_{split}": writer.documents for split, writer in writers.items()},
        **{f"bytes_{split}": writer.bytes for split, writer in writers.items()},
        "bytes_per_token": train.bytes / max(1, train.tokens - train.documents),
        "bytes_per_token_held_out": sum(w.bytes for w in held_out) / max(1, sum(w.tokens - w.documents for w in held_out)),
        "bytes_per_token_by_genre": {genre: size / max(1, tokens) for genre, (size, tokens) in sorted(genres.items())},
        "vocabulary_used": float(train.used.mean()),
    }


class TokenWriter:
    """Writes one split's documents as shards into `folder` and counts what goes by."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.tokenizer = folder, split, tokenizer
        self.dtype = _dtype(tokenizer.vocab_size)
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


class Shards:
    """One split's tokens, memory-mapped: `tokens` and `bytes` (UTF-8, of the texts) in all; `read` anywhere; `documents`, the index.

    `vocab_size` and `tokenizer_sha256` are those of the tokenizer beside them.
    """

    def __init__(self, directory: Path, split: str, index: dict[str, Any]) -> None:
        entry = index["splits"][split]
        self.directory, self.split = directory, split
        self.vocab_size: int = index["vocab_size"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        self.tokens: int = entry["tokens"]
        self.bytes: int = entry["bytes"]
        self._files: list[dict[str, Any]] = entry["files"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        for file in self._files:
            self._check_size(directory / file["name"], file["tokens"] * dtype.itemsize)
        self._starts = [0, *accumulate(file["tokens"] for file in self._files)]
        if self._starts[-1] != self.tokens:
            held = self._starts[-1]
            raise InputError(f"{directory / INDEX}: its files hold {held} tokens, not {self.tokens}; run the tokens stage again")
        self._maps = [np.memmap(directory / file["name"], dtype=dtype, mode="r") for file in self._files]

    @classmethod
    def open(cls, tokens_dir: Path, split: str) -> Shards:
        """Open the shards of "train", "valid" or "test" and check them against the index, short of reading them (see `verify`).

        Raises:
            InputError: no shards there, no such split, a file missing or of the wrong size, or not the tokenizer they were made with.
        """
        path = tokens_dir / INDEX
        try:
            index = json.loads(path.read_text())
            known = sorted(index["splits"])
            wanted = index["tokenizer_sha256"]
        except FileNotFoundError as error:
            raise InputError(f"{tokens_dir}: no token shards here ({INDEX} is missing); run the tokens stage first") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a readable index of token shards ({error}); run the tokens stage again") from error
        if split not in known:
            raise InputError(f"{path}: has no split '{split}'; it has {', '.join(known)}")
        tokenizer = tokens_dir / TOKENIZER
        if not tokenizer.is_file() or hash_file(tokenizer) != wanted:
            raise InputError(f"{tokenizer}: not the tokenizer these shards were made with (its hash is not that in {INDEX}); "
                             "restore it or run the tokens stage again")
        return cls(tokens_dir, split, index)

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            cause = "missing" if size is None else f"{size} bytes, but {INDEX} says {expected} (truncated or altered)"
            raise InputError(f"{path}: {cause}; restore it or run the tokens stage again")

    def read(self, start: int, length: int) -> Array:
        """The `length` tokens from position `start` of the split on, int64, across files.

        Raises:
            IndexError: outside the split.
        """
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"tokens {start} to {start + length} of the {self.split} split, which has {self.tokens}")
        result = np.empty(length, dtype=np.int64)
        for first, tokens in zip(self._starts, self._maps, strict=False):
            piece = tokens[max(0, start - first) : max(0, start + length - first)]
            if len(piece):
                at = max(0, first - start)
                result[at : at + len(piece)] = piece
        return result

    @cached_property
    def documents(self) -> Array:
        """(documents, 3) int64: first token in the split (its end-of-text token), number of tokens, UTF-8 bytes of the text.

        Raises:
            InputError: an index file is missing or damaged.
        """
        parts = []
        for file, first in zip(self._files, self._starts, strict=False):
            path = self.directory / file["documents_name"]
            try:
                rows: Array = np.load(path, allow_pickle=False)
                if rows.shape != (file["documents"], 3):
                    raise ValueError(f"its shape is {rows.shape}")
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{path}: not a readable document index ({error}); run the tokens stage again") from error
            parts.append(rows + np.array([first, 0, 0]))
        return np.concatenate(parts)

    def verify(self) -> None:
        """Read every file of the split and compare it with its SHA-256 in the index.

        Raises:
            InputError: names the file that differs.
        """
        for file in self._files:
            for name, digest in ((file["name"], file["sha256"]), (file["documents_name"], file["documents_sha256"])):
                path = self.directory / name
                if not path.is_file() or hash_file(path) != digest:
                    raise InputError(f"{path}: its bytes do not match the checksum in {INDEX} (altered or damaged); "
                                     "restore it or run the tokens stage again")
