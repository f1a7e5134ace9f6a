"""What texts are there: their kind, the field that holds the text, how many, and what vocabulary, context and holdout
they support. Two megabytes are looked at; a smaller corpus is read whole and measured exactly.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.corpus.clean.filters import why_dropped
from lmforge.corpus.holdout import filled, wanted_of
from lmforge.corpus.normalise import clean
from lmforge.corpus.overlap.duplicates import text_digest
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.files import NOT_TEXTS, walk
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.sources.records import JSONL, PARQUET, text_field_of
from lmforge.corpus.sources.texts import CODE, MARKUP, PROSE
from lmforge.corpus.sources.unfold import COMPRESSED
from lmforge.corpus.splits import unit
from lmforge.errors import InputError
from lmforge.recipe import Corpus, Source, SourceKind
from lmforge.tokens.bpe import train_tokenizer

LOOKED_AT = 2_000_000  # bytes of text read; a smaller corpus is read whole and measured exactly
LARGEST_BYTES_PER_TOKEN = 6  # of usual text with a small vocabulary; a split must hold a row even then
LEAST_VOCABULARY = 257  # every byte and the end of text
SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "folder": tuple(PROSE | MARKUP | CODE),
    "jsonl": JSONL,
    "parquet": PARQUET,
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """What is there, as far as it was looked at."""

    source: Source
    bytes: int  # of text, about
    vocab_size: int
    context: int
    holdout: float
    train_tokens: int  # about
    others: str  # files of other kinds, in words


def look_at(texts: Path) -> Texts:
    """What kind of texts these are, about how many, and what vocabulary, context and holdout they support."""
    kind, others, stored, packed = _kind_of(texts)
    path = texts.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{texts!r}: a path that is not UTF-8 cannot stand in a recipe; rename it") from error
    source = Source(kind=kind, path=path, text_field=_text_field(kind, path))
    documents, read, whole = [], 0, True
    for document in iter_documents(source):
        documents.append(document)
        read += len(document["text"].encode("utf-8", "replace"))
        if read > LOOKED_AT:
            whole = False
            break
    held = [text for text in (clean(document["text"]) for document in documents) if why_dropped(text, Corpus()) is None]
    if not held:
        raise InputError(
            f"{texts}: no usable text in it ({len(documents)} documents, {read} bytes looked at); "
            f"documents need at least {Corpus().min_chars} characters of text that does not repeat itself"
        )
    size = read if whole else max(read, round(stored * (3.5 if packed else 1)))
    vocabulary = vocabulary_for(size)
    if whole:
        holdout, context, in_train = _split(texts, held)
        vocabulary, tokens = _supported(in_train, vocabulary)
    else:
        holdout, context = 0.05, 256
        tokens = round(size * (1 - holdout) / bytes_per_token(vocabulary))
    return Texts(source, size, vocabulary, context, holdout, tokens, others)


def vocabulary_for(text_bytes: int) -> int:
    """The power of two nearest to the root of the bytes: 1 MB → 1,024, 30 MB → 4,096, 1 GB → 32,768; 512 to 65,536."""
    return 1 << min(16, max(9, round(math.log2(max(1, text_bytes)) / 2)))


def bytes_per_token(vocab_size: int) -> float:
    """About how many bytes of usual text a token of a byte-level BPE stands for: 2.4 at 1,024, 3.1 at 4,096, 4.2 at
    32,768."""
    return 0.36 * math.log2(vocab_size) - 1.2


def _kind_of(texts: Path) -> tuple[SourceKind, str, int, bool]:
    """(the kind that most bytes are of, the other kinds in words, bytes stored, whether they are compressed)."""
    sizes: Counter[SourceKind] = Counter()
    packed: Counter[SourceKind] = Counter()
    if not texts.exists():
        raise InputError(f"{texts}: does not exist; give a folder of texts, a text, .jsonl or .parquet file")
    for path in [texts] if texts.is_file() else _walk(texts):
        fallback: SourceKind | None = "folder" if texts.is_file() else None
        kind = next((kind for kind, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), fallback)
        if kind is not None and (path.exists() or not path.is_symlink()):
            size = path.stat().st_size
            sizes[kind] += size
            packed[kind] += size * path.name.lower().endswith((*COMPRESSED, *PARQUET))
    if not sum(sizes.values()):
        raise InputError(
            f"{texts}: no text in it; expected files ending in .txt .md .py … (text and source code), .jsonl or "
            ".parquet"
        )
    (kind, size), *others = sizes.most_common()
    words = ", ".join(f"{other} ({more:,} bytes)" for other, more in others)
    return kind, words, size, packed[kind] > size / 2


def _walk(folder: Path) -> list[Path]:
    return [file.path for file in walk(folder, folder, ("",), Counter(), NOT_TEXTS)]


def _text_field(kind: SourceKind, path: Path) -> str:
    """The field that holds the text or the conversation, by the first record."""
    if kind == "folder":
        return "text"
    files = (
        [path] if path.is_file() else sorted(file for file in _walk(path) if file.name.lower().endswith(SUFFIXES[kind]))
    )
    record = _first_record(kind, files[0])
    return text_field_of(record)


def _first_record(kind: SourceKind, file: Path) -> dict[str, Any]:
    """The first record, {} where it cannot be read: reading the documents will say what is wrong."""
    try:
        if kind == "jsonl":
            record = json.loads(next((line for _, line in lines_of(file) if line.strip()), b"{}"))
        else:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(file) as opened:
                batch = next(opened.iter_batches(batch_size=1), None)
                record = batch.to_pylist()[0] if batch is not None and len(batch) else {}
    except (ValueError, OSError, RecursionError):  # Arrow's errors are ValueErrors and OSErrors
        return {}
    return record if isinstance(record, dict) else {}


def _split(texts: Path, held: list[str]) -> tuple[float, int, list[str]]:
    """(holdout, context, training texts): the longest context of which every split, by hash, holds a few rows."""
    distinct = {text_digest(text): text for text in held}
    for context in (256, 128, 64, 32, 16):
        least = 2 * (context + 1) * LARGEST_BYTES_PER_TOKEN
        for holdout in (0.05, 0.1, 0.2, 0.3):
            parts = _parts(distinct, holdout)
            sizes = {name: sum(len(text.encode()) for text in part) for name, part in parts.items()}
            if min(sizes.values()) >= least and sizes["train"] >= 0.3 * sum(sizes.values()):
                return holdout, context, parts["train"]
    total = sum(len(text.encode()) for text in distinct.values())
    raise InputError(
        f"{texts}: {len(distinct)} distinct documents of {total:,} bytes are too few to train on and hold some out; "
        "add texts or split them into more files"
    )


def _parts(distinct: dict[bytes, str], holdout: float) -> dict[str, list[str]]:
    """The texts of each split, as the corpus stage holds them out where none stands in another."""
    ordered = sorted(distinct.items(), key=lambda each: unit(each[0][:8]))
    places = np.array([unit(digest[:8]) for digest, _ in ordered])
    sizes = np.array([len(text.encode()) for _, text in ordered])
    wanted = wanted_of(holdout, len(ordered), int(sizes.sum()))
    splits = filled([[number] for number in range(len(ordered))], places, sizes, wanted)
    parts: dict[str, list[str]] = {"valid": [], "test": [], "train": []}
    for number, (_, text) in enumerate(ordered):
        parts[splits.get(number, "train")].append(text)
    return parts


def _supported(train: list[str], wanted: int) -> tuple[int, int]:
    """(vocabulary, tokens of these texts with it): `wanted`, or three quarters of it, and so on, until the texts hold
    enough pairs."""
    while True:
        try:
            tokenizer = train_tokenizer(train, wanted)
            return tokenizer.vocab_size, sum(1 + len(tokenizer.encode(text)) for text in train)
        except InputError:
            if wanted == LEAST_VOCABULARY:
                raise
            wanted = max(LEAST_VOCABULARY, wanted * 3 // 4)
