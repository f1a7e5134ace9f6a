"""Where documents come from: this Python's own library, folders of texts, JSONL, Parquet, the Hub, the web, MediaWiki,
source trees, sentence pairs, tasks made by code.

    for document in iter_documents(source):
        document["id"], document["text"]

    parts(source) ─▶ [Part, …], the same for any number of workers ─▶ read_part(source, part) ─▶ documents

Files are visited in the order of their relative paths, so the same files give the same documents on every file system.
Everything streams: memory holds one document, one block of lines or one batch of rows at a time.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lmforge.corpus.sources import code, hub, pairs, pictures, procedural, records, texts, web, wiki
from lmforge.corpus.sources.document import Document, Encodings, Reading, source_name
from lmforge.corpus.sources.files import File, SourcePart, listing_hash
from lmforge.corpus.sources.unfold import COMPRESSED
from lmforge.recipe import Source, SourceKind

__all__ = [
    "Document",
    "Encodings",
    "SourcePart",
    "expected_bytes",
    "fingerprint",
    "iter_documents",
    "parts",
    "read_part",
    "source_name",
]


class _Kind(NamedTuple):
    files: Callable[[Source, Counter[str]], list[File]]
    parts: Callable[[Source, Counter[str]], list[SourcePart]]
    read: Callable[[Reading, SourcePart], Iterator[Document]]


_KINDS: dict[SourceKind, _Kind] = {
    "python-library": _Kind(texts.library_files, texts.library_parts, texts.read_library),
    "folder": _Kind(texts.folder_files, texts.folder_parts, texts.read_folder),
    "jsonl": _Kind(records.jsonl_files, records.jsonl_parts, records.read_jsonl),
    "parquet": _Kind(records.parquet_files, records.parquet_parts, records.read_parquet),
    "hub": _Kind(hub.hub_files, hub.hub_parts, hub.read_hub),
    "warc": _Kind(web.warc_files, web.warc_parts, web.read_warc),
    "html": _Kind(web.html_files, web.html_parts, web.read_html),
    "mediawiki": _Kind(wiki.mediawiki_files, wiki.mediawiki_parts, wiki.read_mediawiki),
    "code": _Kind(code.code_files, code.code_parts, code.read_code),
    "parallel": _Kind(records.jsonl_files, records.jsonl_parts, pairs.read_parallel),
    "images": _Kind(pictures.image_files, pictures.not_texts, pictures.not_texts),
    "procedural": _Kind(lambda _source, _notices: [], procedural.procedural_parts, procedural.read_procedural),
}


def parts(source: Source, notices: Counter[str] | None = None) -> list[SourcePart]:
    """The pieces of `source` that are read on their own, in order: some files, or a range of a large one.

    They depend on the files alone, never on the number of workers, and can be pickled. `notices` counts files passed
    over.

    Raises:
        InputError: a path does not exist, may not be read, holds no texts.
    """
    return _KINDS[source.kind].parts(source, Counter() if notices is None else notices)


def read_part(
    source: Source, part: SourcePart, notices: Counter[str] | None = None, encodings: Encodings | None = None
) -> Iterator[Document]:
    """The documents of one part, in order; `notices` counts what was repaired or skipped, by name, `encodings` the text
    files by their encoding.

    Raises:
        InputError: a file may not be read; or is damaged (binary, truncated, a broken line as FILE:LINE) and the
            source's `damaged` says "refuse".
    """
    return _KINDS[source.kind].read(
        Reading(source, Counter() if notices is None else notices, Encodings() if encodings is None else encodings),
        part,
    )


def iter_documents(source: Source, notices: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of `source`: those of its `parts`, one after another. Raises InputError as these and `read_part`
    do."""
    for part in parts(source, notices):
        yield from read_part(source, part, notices)


def fingerprint(source: Source) -> str:
    """SHA-256 over (relative path, size, mtime) of the files `source` would read: changes when they do. Reads no
    contents.

    Raises:
        InputError: as `parts`, where the files cannot be listed.
    """
    named = {
        "python-library": platform.python_version(),
        "hub": f"{source.path}\0{source.config}\0{source.split}\0{source.revision}",
    }
    return listing_hash(_files(source), named.get(source.kind, ""))


def expected_bytes(source: Source) -> int | None:
    """About how many bytes of text `source` holds, from the files' sizes; None where compression or markup hides it."""
    files = _files(source)
    packed = source.kind in ("parquet", "hub", "warc", "html", "mediawiki") or any(
        file.name.lower().endswith(COMPRESSED) for file in files
    )
    return None if packed else sum(file.size for file in files)


def _files(source: Source) -> list[File]:
    return _KINDS[source.kind].files(source, Counter())
