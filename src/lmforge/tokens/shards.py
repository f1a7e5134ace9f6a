"""Token shards on disk and the memory-mapped reader of them.

    {split}-NNNNN.bin   {split}-NNNNN.docs.npy   index.json   tokenizer.json

A shard is one little-endian array of token ids, uint16 where the vocabulary has at most 65,536 tokens and uint32 beyond. A document is
[end of text, its tokens …]: the end-of-text token stands before each document, so it is what every text is predicted from and what a
model learns to give when a text has ended. A document is never split between shards.
"""

from __future__ import annotations

import json
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.record import hash_file

INDEX, TOKENIZER = "index.json", "tokenizer.json"


Array = NDArray[np.int64]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


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
