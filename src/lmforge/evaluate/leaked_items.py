"""Which items of a benchmark stand in the text that a model was trained on.

    items' texts ─▶ one index ─▶ training documents that hold any of them ─▶ runs of letters compared item by item

Compared as letters alone, like the corpus stage does (`corpus.overlap.decontaminate`): 50 in a row, from a word's
beginning on, or a shorter text whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmforge.corpus.build import read_documents
from lmforge.corpus.overlap.decontaminate import SHORTEST, WINDOW, build_index, contamination
from lmforge.corpus.overlap.words import read_words

_LETTERS = re.compile(r"\w+")


def leaked_items(items: Mapping[str, Sequence[str]], corpus_dir: Path) -> set[str]:
    """The ids of items (id → texts) of which a text stands in the training documents of `corpus_dir`.

    Raises:
        InputError: the corpus is damaged, or not there.
    """
    index = build_index({"items": [text for texts in items.values() for text in texts]})
    runs: dict[str, set[str]] = {}
    for name, texts in items.items():
        for text in texts:
            for run in _runs(text):
                runs.setdefault(run, set()).add(name)
    lengths = sorted({len(run) for run in runs})
    found: set[str] = set()
    for document in read_documents(corpus_dir, "train"):
        if contamination(read_words(document["text"]), index) is None:
            continue
        words = [word.group().lower() for word in _LETTERS.finditer(document["text"])]
        letters = "".join(words)
        start = 0
        for word in words:
            for length in lengths:
                found |= runs.get(letters[start : start + length], set())
            start += len(word)
    return found


def _runs(text: str) -> list[str]:
    """A text's runs of `WINDOW` letters, or its letters where they are fewer."""
    words = [word.group().lower() for word in _LETTERS.finditer(text)]
    letters = "".join(words)
    if len(letters) <= WINDOW:
        return [letters] if len(letters) >= SHORTEST else []
    starts = [0]
    for word in words[:-1]:
        starts.append(starts[-1] + len(word))
    return [letters[start : start + WINDOW] for start in starts if start + WINDOW <= len(letters)]
