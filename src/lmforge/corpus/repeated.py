"""Lines that many documents repeat (menus, notices, licences), taken out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.corpus.clean.forms import removable_lines
from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.words import U64, read_words
from lmforge.corpus.samples import SHOWN_DROPPED
from lmforge.corpus.sources.kinds import Document

EXAMPLES = 10
TEMPLATE = 0.5  # share of the documents that have a line which belongs to what they are written to


def is_plain(document: Document) -> bool:
    """Whether the document is a text as it stands, not one in which places are marked by their position. Those are
    examples made on purpose: a sentence pair has the words of its other direction and is no copy of it."""
    return "loss_spans" not in document["meta"]


def has_plain_lines(document: Document) -> bool:
    """Whether a line may be taken out: not of a program or a conversation, nor of a text with marked places."""
    return document["genre"] != "code" and is_plain(document) and "messages" not in document["meta"]


class RepeatedLines:
    """Removes lines that many documents repeat, and counts them."""

    def __init__(self, repeated: Sequence[U64], documents: int) -> None:
        both = np.concatenate(repeated, axis=1) if repeated else np.empty((2, 0), np.uint64)
        self.hashes, self.counts = both[:, np.argsort(both[0])]
        self.documents = documents  # of the corpus, before any of them is dropped as a copy
        self.removed = self.removed_bytes = self.touched = 0
        self.examples: dict[int, tuple[int, str]] = {}

    @classmethod
    def of(cls, work: Path) -> RepeatedLines:
        """Those that the pass `count` left in a work folder."""
        repeated = [np.load(each / "repeated.npy") for each in sorted((work / "count").glob("[0-9]*"))]
        counts = [json.loads(path.read_text("utf-8")) for path in sorted((work / "read").glob("[0-9]*/counts.json"))]
        return cls(repeated, sum(each["documents"] - sum(each["dropped"].values()) for each in counts))

    def strip_from(self, document: Document) -> bool:
        """`strip`, where lines may be taken out of the document at all."""
        return has_plain_lines(document) and self.strip(document)

    def strip(self, document: Document) -> bool:
        """Take the repeated lines out of the document's text; whether there were any."""
        if not self.hashes.size:
            return False
        words = read_words(document["text"])
        hashes = duplicates.line_hashes(words)
        at = np.minimum(np.searchsorted(self.hashes, hashes), self.hashes.size - 1)
        repeated = self.hashes[at] == hashes
        if not repeated.any():
            return False
        lines = document["text"].split("\n")
        everywhere = repeated & (self.counts[at] >= TEMPLATE * self.documents)
        repeated &= np.array(removable_lines(document["text"], document["genre"], everywhere.tolist()))
        if not repeated.any():
            return False
        for number in np.flatnonzero(repeated):
            self.removed += 1
            self.removed_bytes += len(lines[number].encode("utf-8", "replace")) + 1
            self.examples.setdefault(
                int(hashes[number]), (int(self.counts[at[number]]), lines[number].strip()[:SHOWN_DROPPED])
            )
        self.touched += 1
        document["text"] = "\n".join(line for line, gone in zip(lines, repeated, strict=True) if not gone)
        return True

    def figures(self) -> dict[str, Any]:
        """Lines and bytes removed, documents touched, examples."""
        top = sorted(self.examples.values(), reverse=True)[:EXAMPLES]
        return {"removed": self.removed, "bytes": self.removed_bytes, "documents": self.touched, "examples": top}
