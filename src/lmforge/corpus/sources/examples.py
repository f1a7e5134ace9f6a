"""Texts that a user hands to a filter as examples: a folder, a text, JSONL or Parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lmforge.corpus.sources import records, texts
from lmforge.corpus.sources.document import Reading
from lmforge.corpus.sources.files import listing_hash
from lmforge.errors import InputError
from lmforge.recipe import Source

_FILES = {"folder": texts.folder_files, "jsonl": records.jsonl_files, "parquet": records.parquet_files}
_PARTS = {"folder": texts.folder_parts, "jsonl": records.jsonl_parts, "parquet": records.parquet_parts}
_READ = {"folder": texts.read_folder, "jsonl": records.read_jsonl, "parquet": records.read_parquet}


def examples_of(path: Path) -> Source:
    """The source that reads the texts at `path`: by the suffix of a file, by what a folder holds.

    Raises:
        InputError: it does not exist or holds nothing that can be read.
    """
    if not path.is_dir():
        packed = path.name.lower().endswith(records.JSONL), path.name.lower().endswith(records.PARQUET)
        return Source(kind="jsonl" if packed[0] else "parquet" if packed[1] else "folder", path=path)
    for source in (
        Source(kind="folder", path=path),
        Source(kind="jsonl", path=path),
        Source(kind="parquet", path=path),
    ):
        try:
            _FILES[source.kind](source, Counter())
        except InputError:
            continue
        return source
    raise InputError(
        f"{path}: holds no texts to learn from (no text, JSONL or Parquet file); correct the path in the recipe"
    )


def examples_hash(path: Path) -> str:
    """Changes when the files at `path` do; reads no contents. Raises InputError as `examples_of` does."""
    source = examples_of(path)
    return listing_hash(_FILES[source.kind](source, Counter()))


def texts_at(path: Path) -> Iterator[str]:
    """The texts at `path` that are not blank, in a fixed order."""
    source = examples_of(path)
    for part in _PARTS[source.kind](source, Counter()):
        for document in _READ[source.kind](Reading(source, Counter()), part):
            if document["text"].strip():
                yield document["text"]
