"""Held-out documents and their tokens: of the test split, or of a file of the user's.

test split ─┬─ whole documents within a limit, by their hash ─▶ HeldOut (documents, table, tokens)
data = FILE ┘
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.corpus.build import read_documents
from lmforge.corpus.sources.decode import lines_of
from lmforge.errors import InputError
from lmforge.intervals import bootstrap_ratio
from lmforge.recipe.evaluate import DataSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards

Array = NDArray[np.int64]
Reals = NDArray[np.float64]


class DocumentSettings(DataSettings):
    """Settings of a task that scores whole documents; `limit` counts documents. `data`: a text file, or JSON lines with
    a field `text`."""

    max_tokens: Positive | None = None  # most tokens scored; default: evaluate.max_tokens


class TokenReader(Protocol):
    """What scoring needs of `Shards`."""

    def read(self, start: int, length: int) -> Array:
        """Tokens from a place on."""


@dataclasses.dataclass(frozen=True)
class HeldOutDocument:
    """A held-out document: its row in its split's document index, where it comes from, its text, the text's SHA-256,
    and the spans [start, end) of its characters that also stand in training (None: that was not looked for)."""

    row: int
    id: str
    genre: str
    source: str
    text: str
    digest: str
    leaked: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def leaked_bytes(self) -> NDArray[np.bool_]:
        """Which of the text's UTF-8 bytes stand in such a span: (bytes,)."""
        ends = np.cumsum([0, *(len(c.encode("utf-8", "replace")) for c in self.text)]) if self.leaked else np.zeros(1)
        inside = np.zeros(len(self.text.encode("utf-8", "replace")), dtype=bool)
        for start, end in self.leaked or ():
            inside[int(ends[min(start, len(self.text))]) : int(ends[min(end, len(self.text))])] = True
        return inside


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Documents, and their tokens in `tokens`: `table` (D, 3) has each one's first token there, number of tokens (the
    end of text before it among them) and UTF-8 bytes."""

    documents: list[HeldOutDocument]
    table: Array
    tokens: TokenReader

    @property
    def data_hash(self) -> str:
        """One hash of the documents' texts, in order."""
        return hash_json([document.digest for document in self.documents])

    @property
    def searched(self) -> bool:
        """Whether it is known what of the documents stands in training."""
        return any(document.leaked is not None for document in self.documents)


class EncodedText:
    """Tokens in memory."""

    def __init__(self, ids: Array) -> None:
        self.ids = ids

    def read(self, start: int, length: int) -> Array:
        """Tokens from a place on."""
        return self.ids[start : start + length]


def held_out(settings: DocumentSettings, corpus_dir: Path, tokens_dir: Path, tokenizer: Tokenizer) -> HeldOut:
    """The documents of `settings.data`, else of the test split, in their order: all, or whole ones within the limits.

    Raises:
        InputError: corpus and tokens do not belong together; or the file holds no texts.
    """
    if settings.data is not None:
        return _of_file(settings, settings.data, tokenizer)
    shards = Shards.open(tokens_dir, "test")
    digests = [text_digest(document["text"]) for document in read_documents(corpus_dir, "test")]
    table = shards.documents
    if len(digests) != len(table):
        raise InputError(
            f"{tokens_dir}: {len(table)} test documents, but {corpus_dir} has {len(digests)}; "
            "run the tokens stage again"
        )
    chosen = choose(digests, [int(tokens) for tokens in table[:, 1]], settings.max_tokens, settings.limit)
    kept = []
    for row, document in enumerate(read_documents(corpus_dir, "test")):
        if row not in chosen:
            continue
        if len(document["text"].encode("utf-8", "replace")) != table[row, 2]:
            raise InputError(
                f"{tokens_dir}: test document {document['id']!r} is another text in {corpus_dir}; "
                "run the tokens stage again"
            )
        kept.append(_document(row, document, digests[row]))
    return HeldOut(kept, table[[document.row for document in kept]][:, :3], shards)


def _document(row: int, document: dict[str, Any], digest: str) -> HeldOutDocument:
    meta = document.get("meta")
    spans = meta.get("leaked") if isinstance(meta, dict) else None
    return HeldOutDocument(
        row,
        str(document["id"]),
        str(document.get("genre", "unknown")),
        str(document.get("source", "unknown")),
        document["text"],
        digest,
        None if spans is None else tuple((int(start), int(end)) for start, end in spans),
    )


def _of_file(settings: DocumentSettings, path: Path, tokenizer: Tokenizer) -> HeldOut:
    texts = list(read_texts(path))
    digests = [text_digest(text) for _, text in texts]
    ids = [[tokenizer.end_of_text, *each] for each in tokenizer.encode_batch([text for _, text in texts])]
    chosen = choose(digests, [len(each) for each in ids], settings.max_tokens, settings.limit)
    kept = [
        HeldOutDocument(row, name, "unknown", path.name, text, digests[row])
        for row, (name, text) in enumerate(texts)
        if row in chosen
    ]
    lengths = np.array([len(ids[document.row]) for document in kept])
    sizes = [len(document.text.encode("utf-8", "replace")) for document in kept]
    table = np.column_stack([np.cumsum(lengths) - lengths, lengths, sizes]).astype(np.int64)
    return HeldOut(kept, table, EncodedText(np.concatenate([np.array(ids[document.row]) for document in kept])))


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of a file: a text file (.txt, .md) is one, a line of any other a JSON object with a
    field `text`.

    Raises:
        InputError: the file cannot be read, a line has no text, or there is none.
    """
    empty = True
    if path.suffix in (".txt", ".md"):
        text = b"\n".join(line for _, line in lines_of(path)).decode("utf-8", "replace")
        if text.strip():
            empty = False
            yield path.name, text
    else:
        for number, line in lines_of(path):
            if not line.strip():
                continue
            try:
                text = orjson.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f'{path}:{number}: no JSON object with a field "text"; correct the line, or give a .txt file'
                ) from error
            if not isinstance(text, str):
                raise InputError(f'{path}:{number}: field "text" is no string; correct the line')
            if text:
                empty = False
                yield f"{path.name}:{number}", text
    if empty:
        raise InputError(f"{path}: no texts in it; give a .txt file or JSON lines with a field text")


def text_digest(text: str) -> str:
    """SHA-256 (hex) of a document's text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def choose(digests: Sequence[str], tokens: Sequence[int], max_tokens: int | None, limit: int | None = None) -> set[int]:
    """Rows of whole documents, in the order of their digests, as long as their tokens stay within `max_tokens` and they
    are at most `limit`; at least one.

    Which documents are taken depends on their own texts, not on their order, and hardly on what else there is.
    """
    chosen: set[int] = set()
    total = 0
    for row in sorted(range(len(digests)), key=lambda row: digests[row])[:limit]:
        if max_tokens is not None and chosen and total + tokens[row] > max_tokens:
            break
        chosen.add(row)
        total += tokens[row]
    return chosen


def without_leaked(bits: Reals, sizes: Array, whole: Array, seed: int) -> dict[str, Any]:
    """The figures of `Score.clean`: `bits` and `sizes` (D,) of what does not stand in training, `whole` (D,) bytes of
    each document. Documents of which nothing is left say nothing."""
    left = sizes > 0
    low, high = (bootstrap_ratio(bits[left], sizes[left], seed) if left.any() else None) or (None, None)
    return {
        "clean_value": float(bits[left].sum() / sizes[left].sum()) if left.any() else None,
        "clean_low": low,
        "clean_high": high,
        "leaked_share": 1 - float(sizes.sum() / max(1, whole.sum())),
    }
