"""Data sets of the Hugging Face Hub, or of the same form in a local folder, streamed through the `datasets` library
(extra `hub`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import File, SourcePart, walk
from lmforge.corpus.sources.records import BrokenRecord, document_of
from lmforge.errors import InputError
from lmforge.recipe import Source


def hub_files(source: Source, notices: Counter[str]) -> list[File]:
    """The files of a local data set; none of one on the Hub, which its revision names."""
    assert source.path is not None
    return sorted(walk(source.path, source.path, ("",), Counter(), frozenset())) if source.path.is_dir() else []


def hub_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """The shards that the data set is stored in."""
    shards = _opened(source).num_shards
    return [SourcePart(f"{source.split}[{number}]", (), number, number + 1) for number in range(shards)]


def read_hub(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each row of one shard."""
    data = _opened(reading.source)
    rows = iter(data.shard(num_shards=data.num_shards, index=part.start))
    number = 0
    while True:
        try:
            record = next(rows, None)
        except _errors() as error:
            message = (
                f"{_name(reading.source)}: {_first_line(error)}; readable up to row {number} of {part.name}; fetch it "
                "again"
            )
            reading.damaged("rest of a damaged shard", InputError(message))
            return
        if record is None:
            return
        number += 1
        try:
            document = document_of(record, reading, f"{part.name}:{number}")
        except BrokenRecord as error:
            reading.damaged("broken row", InputError(f"{_name(reading.source)} {part.name} row {number}: {error}"))
        else:
            yield document


def _opened(source: Source) -> Any:
    """The data set, streamed.

    Raises:
        InputError: the library is missing, or finds no such data set, configuration or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "kind 'hub' needs the datasets library; install it with: pip install 'lmforge[hub]'"
        ) from error
    try:
        return datasets.load_dataset(
            _name(source), source.config, split=source.split, streaming=True, revision=source.revision
        )
    except _errors() as error:
        offline = (
            " (HF_HUB_OFFLINE is set, so only local folders can be read)"
            if os.environ.get("HF_HUB_OFFLINE") == "1"
            else ""
        )
        mend = "correct the source's path, config, split or revision"
        raise InputError(
            f"{_name(source)}: cannot be opened as a data set: {_first_line(error)}{offline}; {mend}"
        ) from error


def _errors() -> tuple[type[Exception], ...]:
    import datasets
    import pyarrow
    import zstandard

    return (
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
        EOFError,
        pyarrow.ArrowException,
        zstandard.ZstdError,
    )


def _name(source: Source) -> str:
    assert source.path is not None
    return str(source.path) if source.path.is_dir() else Path(source.path).as_posix()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")[:200]
