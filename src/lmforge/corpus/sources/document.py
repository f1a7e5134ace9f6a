"""What every kind of source yields, and what it does about damaged input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from lmforge.corpus.sources.encodings import Encoding
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind

FILES_NAMED = 20  # of each encoding other than UTF-8, in the statistics


class Document(TypedDict):
    """One text and what is known of it; one line of a corpus file.

    What stands in `meta` itself is lmforge's own (`messages`, `loss_spans`, `split_key`, `synthetic`, `language`,
    `title`, …) and steers what is done with the document. The columns of the input are data: they stand in
    `meta["columns"]`, whatever their names, and steer nothing.
    """

    id: str
    text: str
    source: str
    genre: str
    meta: dict[str, Any]


# where the recipe names none
_GENRES: dict[SourceKind, str] = {"warc": "web", "html": "web", "mediawiki": "encyclopedia", "code": "code"}


class Encodings:
    """Which encodings the texts were in: how many files of each, and the names of some that are not UTF-8."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.files: dict[str, list[str]] = {}

    def add(self, encoding: str, name: str) -> None:
        """A file was read so."""
        self.counts[encoding] += 1
        named = self.files.setdefault(encoding, [])
        if encoding != "utf-8" and len(named) < FILES_NAMED:
            named.append(name)

    def state(self) -> dict[str, Any]:
        """{encoding: {files: how many, named: some of them}}, as JSON."""
        return {name: {"files": n, "named": self.files.get(name, [])} for name, n in sorted(self.counts.items())}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another's `state` says."""
        for name, each in state.items():
            self.counts[name] += each["files"]
            self.files[name] = (self.files.get(name, []) + each["named"])[:FILES_NAMED]


@dataclass(frozen=True)
class Reading:
    """A source being read: `notices` counts, by name, what is passed over, repaired or skipped."""

    source: Source
    notices: Counter[str]
    encodings: Encodings = field(default_factory=Encodings)

    def document(self, name: str, text: str, genre: str | None = None, meta: dict[str, Any] | None = None) -> Document:
        """A document of this source: of the genre given, else the source's, else its kind's."""
        own = self.source.genre if self.source.genre != "unknown" else _GENRES.get(self.source.kind, "unknown")
        return Document(id=name, text=text, source=source_name(self.source), genre=genre or own, meta=meta or {})

    def note_encoding(self, encoding: Encoding, name: str) -> None:
        """Count how the file of this name is read, and what of it does not decode."""
        self.encodings.add(encoding.label, name)
        if encoding.broken:
            self.notices["repaired: file with bytes that do not decode"] += 1

    def damaged(self, reason: str, error: InputError, count: int = 1) -> None:
        """Refuse damaged input by raising `error`, or count it and return, as the source's `damaged` says. `count`:
        how many records are lost, where that is known."""
        if not self.source.skips_damage:
            raise error
        self.notices[f"skipped: {reason}"] += count


def source_name(source: Source) -> str:
    """The `source` field of its documents: the kind and the last part of the path, which names no machine's folders."""
    return source.kind if source.path is None else f"{source.kind}:{source.path.name}"
