"""samples.html: what was kept and what was dropped, to be looked at by a person."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from lmforge.corpus.sources.kinds import Document

KEPT = 20
PER_REASON = 5
SHOWN = 2000  # characters of a kept document
SHOWN_DROPPED = 200

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; overflow: hidden; }
article h3, pre {
  font: 0.8rem/1.45 ui-monospace, monospace; margin: 0; padding: 0.5rem 0.75rem; overflow-wrap: anywhere;
}
article h3 { font-weight: 600; background: var(--soft); }
pre { white-space: pre-wrap; max-height: 24rem; overflow: auto; }
table { border-collapse: collapse; }
td { border-bottom: 1px solid var(--line); padding: 0.25rem 1rem 0.25rem 0; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}: samples</title>
<style>{style}</style></head>
<body>
{body}
</body>
</html>
"""


class Samples:
    """Holds the examples of smallest digest: a random choice that no order of input changes."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str, str, str]] = []
        self._dropped: dict[str, list[tuple[int, str, str, str]]] = {}

    def keep(self, document: Document, digest: bytes) -> None:
        """Offer a kept document."""
        _offer(self._kept, KEPT, document, digest, SHOWN)

    def drop(self, document: Document, reason: str, digest: bytes) -> None:
        """Offer a dropped document."""
        _offer(self._dropped.setdefault(reason, []), PER_REASON, document, digest, SHOWN_DROPPED)

    def merge(self, state: dict[str, Any]) -> None:
        """Take in what another's `state` gave."""
        for entry in state["kept"]:
            _push(self._kept, KEPT, tuple(entry))
        for reason, entries in state["dropped"].items():
            for entry in entries:
                _push(self._dropped.setdefault(reason, []), PER_REASON, tuple(entry))

    def state(self) -> dict[str, Any]:
        """What is held, as JSON-ready values."""
        return {
            "kept": sorted(self._kept),
            "dropped": {reason: sorted(each) for reason, each in sorted(self._dropped.items())},
        }

    def page(self, name: str, dropped: Mapping[str, int], kept: int) -> str:
        """The page, self-contained; every text in it is escaped."""
        rows = [("kept", kept), *Counter(dropped).most_common()]
        cells = "".join(f"<tr><td>{escape(what)}</td><td>{count:,}</td></tr>" for what, count in rows)
        body = [f"<h1>{escape(name)}: samples of the corpus</h1>", f"<table>{cells}</table>"]
        body += [
            f"<h2>Kept ({len(self._kept)} of {kept:,}, at random)</h2>",
            *map(_article, sorted(self._kept, reverse=True)),
        ]
        for reason, examples in sorted(self._dropped.items()):
            body += [f"<h2>Dropped: {escape(reason)} ({len(examples)} of {dropped.get(reason, 0):,})</h2>"]
            body += map(_article, sorted(examples, reverse=True))
        return _PAGE.format(title=escape(name), style=_STYLE, body="\n".join(body))


def _offer(heap: list[tuple[int, str, str, str]], most: int, document: Document, digest: bytes, shown: int) -> None:
    text = document["text"]
    more = f"\n… ({len(text) - shown:,} characters more)" if len(text) > shown else ""
    # Other bytes of the digest than those that decide split and weight; negated, because the heap pops its smallest.
    rank = -int.from_bytes(digest[16:24], "big")
    _push(heap, most, (rank, document["source"], document["id"], text[:shown] + more))


def _push(heap: list[tuple[int, str, str, str]], most: int, entry: tuple[int, str, str, str]) -> None:
    (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, entry)


def _article(entry: tuple[int, str, str, str]) -> str:
    _, source, identifier, text = entry
    return f"<article><h3>{escape(source)} · {escape(identifier)}</h3><pre>{escape(text)}</pre></article>"
