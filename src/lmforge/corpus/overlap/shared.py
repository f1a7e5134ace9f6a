"""What many documents have in common by design, so that two of them are not alike because of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.sources.document import Document

FEWEST = 20  # documents that share a run of words before it counts for nothing
SHARE = 0.1  # and of all of them
SAMPLE = 4096  # documents that are looked at


def own_text(document: Document) -> str | None:
    """What is said in a conversation besides the system's message, which stands before a whole data set; None for a
    document that is no conversation or has none."""
    messages = document["meta"].get("messages")
    if not isinstance(messages, list) or not any(_is_system(message) for message in messages):
        return None
    own = [
        _words(message.get("content")) for message in messages if not _is_system(message) and isinstance(message, dict)
    ]
    return "\n\n".join(own) if any(map(str.strip, own)) else None


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role", message.get("from")) in ("system", "developer")


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: Sequence[Any] = content if isinstance(content, list) else ()
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def common_runs(sketches: NDArray[np.uint32], empty: int) -> NDArray[np.uint32]:
    """The hashes (ascending) that stand in a large share of some documents' (documents, hashes) sketches, each of whose
    rows holds distinct ones: the runs of words of a preamble, a licence, a form that they are all written to."""
    hashes, counts = np.unique(sketches, return_counts=True)
    common: NDArray[np.uint32] = hashes[(counts >= max(FEWEST, SHARE * len(sketches))) & (hashes != empty)]
    return common
