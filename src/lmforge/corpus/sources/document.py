"""What every kind of source yields, and what it does about damaged input."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypedDict

from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind


class Document(TypedDict):
    """One text and what is known of it; one line of a corpus file."""

    id: str
    text: str
    source: str
    genre: str
    meta: dict[str, Any]


# where the recipe names none
_GENRES: dict[SourceKind, str] = {"warc": "web", "html": "web", "mediawiki": "encyclopedia", "code": "code"}


@dataclass(frozen=True)
class Reading:
    """A source being read: `notices` counts, by name, what is passed over, repaired or skipped."""

    source: Source
    notices: Counter[str]

    def document(self, name: str, text: str, genre: str | None = None, meta: dict[str, Any] | None = None) -> Document:
        """A document of this source: of the genre given, else the source's, else its kind's."""
        own = self.source.genre if self.source.genre != "unknown" else _GENRES.get(self.source.kind, "unknown")
        return Document(id=name, text=text, source=source_name(self.source), genre=genre or own, meta=meta or {})

    def damaged(self, reason: str, error: InputError) -> None:
        """Refuse damaged input by raising `error`, or count it and return, as the source's `damaged` says."""
        if not self.source.skips_damage:
            raise error
        self.notices[f"skipped: {reason}"] += 1


def source_name(source: Source) -> str:
    """The `source` field of its documents: the kind and the last part of the path, which names no machine's folders."""
    return source.kind if source.path is None else f"{source.kind}:{source.path.name}"
