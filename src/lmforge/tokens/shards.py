"""Token shards on disk and the memory-mapped reader of them.

    index.json  tokenizer.json  {split}-NNNNN.bin  {split}-NNNNN.docs.npy  {split}-NNNNN.mask

A shard (.bin) is one little-endian array of token ids, uint16 where the vocabulary has at most 65,536 tokens and uint32
beyond. A document is [what stands before it, its tokens …]. What stands before it, and is what its first token is
predicted from, is the end of the text before, the beginning of a text (BOS) where the vocabulary has one of its own, or
what a chat template writes first. What follows a document's last token is always the end of text, `end` in the index,
whatever the next document begins with: that is what a model learns to give when a text has ended. A document is never
split between shards.

Its document index (.docs.npy) has a column per document: first token, tokens, UTF-8 bytes, number of the source, number
of the genre. A mask (.mask, one bit a token, 1: it counts in the loss) is there only where some token does not count.

A shard of the training split holds one source's documents of one genre, and those of a kind stand together: a `Group`,
from which the loader draws by weight. The other splits keep the order of the corpus.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.errors import InputError
from lmforge.record import hash_file, hash_json, write_atomic
from lmforge.tokens.images import Pictures
from lmforge.tokens.remote import fetch_shards, file_hashes

INDEX, TOKENIZER = "index.json", "tokenizer.json"
FORMAT = 3
_READ = (2, FORMAT)  # in format 2 every document begins with the end of text, token 0
Array = NDArray[np.int64]


class Group(NamedTuple):
    """The tokens of one source and genre: `tokens` of the split from `first` on."""

    source: str
    genre: str
    first: int
    tokens: int


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of a token on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Shards:
    """One split's tokens, memory-mapped: `tokens` and `bytes` (UTF-8, of the texts) in all; `read` anywhere;
    `documents`, the index.

    `vocab_size` and `tokenizer_sha256` are those of the tokenizer beside them, `end` its end of text and `pad` what it
    fills rows with. `uniform`: every document begins with `end`.
    """

    def __init__(self, directory: Path, split: str, index: dict[str, Any]) -> None:
        entry = index["splits"][split]
        self.directory, self.split = directory, split
        self.vocab_size: int = index["vocab_size"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        special = index.get("special", {"end_of_text": 0, "pad": None})
        self.end: int = special["end_of_text"]
        self.pad: int = self.end if special["pad"] is None else special["pad"]
        self.uniform: bool = entry.get("begins", [self.end]) in ([self.end], [])
        self.sources: list[str] = index["sources"]
        self.genres: list[str] = index["genres"]
        self.tokens: int = entry["tokens"]
        self.bytes: int = entry["bytes"]
        self._files: list[dict[str, Any]] = entry["files"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        for file in self._files:
            self._check_size(directory / file["name"], file["tokens"] * dtype.itemsize)
            if "mask_name" in file:
                self._check_size(directory / file["mask_name"], -(-file["tokens"] // 8))
        self._starts = [0, *accumulate(file["tokens"] for file in self._files)]
        if self._starts[-1] != self.tokens:
            held = self._starts[-1]
            raise InputError(
                f"{directory / INDEX}: its files hold {held} tokens, not {self.tokens}; run the tokens stage again"
            )
        self._maps = [np.asarray(np.memmap(directory / file["name"], dtype=dtype, mode="r")) for file in self._files]
        self._masks = [
            np.asarray(np.memmap(directory / file["mask_name"], dtype=np.uint8, mode="r"))
            if "mask_name" in file
            else None
            for file in self._files
        ]

    @classmethod
    def open(cls, location: Path | str, split: str) -> Shards:
        """Open the shards of "train", "valid" or "test" and check them against the index, short of reading them (see
        `verify`).

        `location` is a folder, or an address that fsspec understands (s3://…): then the split is copied to the cache
        first, every file checked, and read from there.

        Raises:
            InputError: no shards there, no such split, a file missing or of the wrong size, or not the tokenizer they
                were made with.
        """
        if isinstance(location, str):
            location = fetch_shards(location, split) if "://" in location else Path(location)
        path = location / INDEX
        try:
            index = json.loads(path.read_text())
            known = sorted(index["splits"])
            wanted, made = index["tokenizer_sha256"], index["format"]
        except FileNotFoundError as error:
            raise InputError(
                f"{location}: no token shards here ({INDEX} is missing); run the tokens stage first"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not a readable index of token shards ({error}); run the tokens stage again"
            ) from error
        if made not in _READ:
            raise InputError(
                f"{path}: shards of format {made}, this version reads format {FORMAT}; run the tokens stage again"
            )
        if split not in known:
            raise InputError(f"{path}: has no split '{split}'; it has {', '.join(known)}")
        tokenizer = location / TOKENIZER
        if not tokenizer.is_file() or hash_file(tokenizer) != wanted:
            raise InputError(
                f"{tokenizer}: not the tokenizer these shards were made with (its hash is not that in {INDEX}); "
                "restore it or run the tokens stage again"
            )
        return cls(location, split, index)

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            cause = "missing" if size is None else f"{size} bytes, but {INDEX} says {expected} (truncated or altered)"
            raise InputError(f"{path}: {cause}; restore it or run the tokens stage again")

    @property
    def masked(self) -> bool:
        """Whether some tokens do not count in the loss."""
        return any(mask is not None for mask in self._masks)

    @cached_property
    def groups(self) -> list[Group]:
        """The kinds of text that the loader may weigh, in the order of their tokens; of a split in mixed order, one
        group without names."""
        groups: list[Group] = []
        for file, first in zip(self._files, self._starts, strict=False):
            source, genre = (self.sources[file["source"]], self.genres[file["genre"]]) if "source" in file else ("", "")
            if groups and groups[-1][:2] == (source, genre):
                groups[-1] = groups[-1]._replace(tokens=groups[-1].tokens + file["tokens"])
            else:
                groups.append(Group(source, genre, first, file["tokens"]))
        return groups

    def read(self, start: int, length: int) -> Array:
        """The `length` tokens from position `start` of the split on, int64, across files.

        Raises:
            IndexError: outside the split.
        """
        if length < 0:
            raise IndexError(f"{length} tokens of the {self.split} split, which has {self.tokens}")
        result = np.empty(length, dtype=np.int64)
        self.read_into(start, result)
        return result

    def read_into(self, start: int, into: Array) -> None:
        """`read` of as many tokens as `into` has places, into it.

        Raises:
            IndexError: outside the split.
        """
        stop = start + len(into)
        if start < 0 or stop > self.tokens:
            raise IndexError(f"tokens {start} to {stop} of the {self.split} split, which has {self.tokens}")
        file = bisect_right(self._starts, start, 0, len(self._maps)) - 1
        done = 0
        while done < len(into):
            at = start + done - self._starts[file]
            piece = self._maps[file][at : at + len(into) - done]
            into[done : done + len(piece)] = piece
            done += len(piece)
            file += 1

    def copy_pieces(
        self, starts: Array, lengths: Array, places: Array, inputs: Array, targets: Array
    ) -> NDArray[np.bool_]:
        """Pieces of text, each `lengths` tokens from `starts` on, to `places` of the flat `inputs`, and what is to be
        predicted after each of these into `targets`: the next token, `end` after a document, −1 where that does not
        count. Returns which pieces were left out: those that, with the token after them, lie in more than one file.
        """
        files = np.searchsorted(self._starts, starts, side="right") - 1
        left = starts + lengths >= np.array(self._starts)[files + 1]
        for file in np.unique(files[~left]).tolist():
            mine = ~left & (files == file)
            mask = self._masks[file]
            bits = np.empty(0, dtype=np.uint8) if mask is None else mask
            _copy(
                self._maps[file], bits, starts[mine] - self._starts[file], lengths[mine], places[mine], inputs, targets
            )
        if not self.uniform:
            self._end_documents(starts[~left], lengths[~left], places[~left], targets)
        return left

    def _end_documents(self, starts: Array, lengths: Array, places: Array, targets: Array) -> None:
        """Put `end` where a target is the beginning of the next document, and counts."""
        begins = self.documents[:, 0]
        low = np.searchsorted(begins, starts + 1)
        many = np.searchsorted(begins, starts + lengths, side="right") - low
        which = np.repeat(np.arange(len(starts)), many)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many)
        at = begins[low[which] + nth] - starts[which] - 1 + places[which]
        targets[at] = np.where(targets[at] >= 0, self.end, -1)

    def counts(self, start: int, length: int) -> NDArray[np.bool_]:
        """Which of the `length` tokens from `start` on count in the loss, as what is to be predicted.

        Raises:
            IndexError: outside the split.
        """
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"tokens {start} to {start + length} of the {self.split} split, which has {self.tokens}")
        result = np.ones(length, dtype=bool)
        for first, mask, file in zip(self._starts, self._masks, self._files, strict=False):
            low, high = max(0, start - first), min(file["tokens"], start + length - first)
            if mask is not None and low < high:
                bits = np.unpackbits(mask[low // 8 : -(-high // 8)])[low % 8 :][: high - low]
                result[first + low - start : first + high - start] = bits
        return result

    def document_starts(self, start: int, stop: int) -> Array:
        """The places p of the tokens that stand before documents, start <= p < stop, ascending.

        Raises:
            InputError: an index file is missing or damaged.
        """
        parts = [np.empty(0, dtype=np.int64)]
        for first, last, table in zip(self._starts, self._starts[1:], self._tables, strict=False):
            if first < stop and start < last:
                low, high = np.searchsorted(table[0], (start - first, stop - first))
                parts.append(table[0, low:high] + first)
        return np.concatenate(parts)

    @cached_property
    def pictures(self) -> Pictures | None:
        """The images that the texts have marks for, where they have any.

        Raises:
            InputError: a file of them is missing or damaged.
        """
        mark = json.loads((self.directory / INDEX).read_text()).get("image_mark")
        return None if mark is None else Pictures(self.directory, self._files, mark)

    @cached_property
    def documents(self) -> Array:
        """(documents, 3) int64: first token in the split (that before its text), number of tokens, UTF-8 bytes of the
        text.

        Raises:
            InputError: an index file is missing or damaged.
        """
        shift = np.array([[1], [0], [0]])
        return np.concatenate(
            [table[:3] + shift * first for table, first in zip(self._tables, self._starts, strict=False)], axis=1
        ).T.copy()

    @cached_property
    def labels(self) -> Array:
        """(documents, 2) int64: the number of each document's source in `sources` and of its genre in `genres`.

        Raises:
            InputError: an index file is missing or damaged.
        """
        return np.concatenate([table[3:] for table in self._tables], axis=1).T.copy()

    @cached_property
    def _tables(self) -> list[Array]:
        """The document index of each file, (5, documents), memory-mapped."""
        tables = []
        for file in self._files:
            path = self.directory / file["documents_name"]
            try:
                table: Array = np.load(path, mmap_mode="r", allow_pickle=False)
                if table.shape != (5, file["documents"]) or table.dtype != np.int64:
                    raise ValueError(f"its shape is {table.shape}")
            except (OSError, ValueError, EOFError) as error:
                raise InputError(
                    f"{path}: not a readable document index ({error}); run the tokens stage again"
                ) from error
            tables.append(table)
        return tables

    def verify(self) -> None:
        """Read every file of the split and compare it with its SHA-256 in the index.

        Raises:
            InputError: names the file that differs.
        """
        for name, digest in file_hashes(self._files):
            path = self.directory / name
            if not path.is_file() or hash_file(path) != digest:
                raise InputError(
                    f"{path}: its bytes do not match the checksum in {INDEX} (altered or damaged); "
                    "restore it or run the tokens stage again"
                )

    def fingerprint(self) -> str:
        """Changes when a file's size or time of change, or the checksum it should have, does. Reads no tokens."""
        state = [
            (name, digest, (stat := (self.directory / name).stat()).st_size, stat.st_mtime_ns)
            for name, digest in file_hashes(self._files)
        ]
        return hash_json(state)


def verify_once(splits: Sequence[Shards], mark: Path) -> None:
    """`verify` each, unless the file `mark` says that just these files were verified before; then write it.

    Raises:
        InputError: names the file that differs.
    """
    state = " ".join(shards.fingerprint() for shards in splits)
    if mark.is_file() and mark.read_text() == state:
        return
    for shards in splits:
        shards.verify()
    write_atomic(mark, state)


@compiled
def _copy(
    text: NDArray[Any],
    mask: NDArray[np.uint8],
    starts: Array,
    lengths: Array,
    places: Array,
    inputs: Array,
    targets: Array,
) -> None:
    """`Shards.copy_pieces` within one file; an empty mask counts everything."""
    for piece in range(len(starts)):
        start, length, place = starts[piece], lengths[piece], places[piece]
        for token in range(length):
            inputs[place + token] = text[start + token]
        for token in range(length):
            targets[place + token] = text[start + token + 1]
        if len(mask):
            for token in range(length):
                bit = start + token + 1
                if not (mask[bit >> 3] >> (7 - (bit & 7))) & 1:
                    targets[place + token] = -1
