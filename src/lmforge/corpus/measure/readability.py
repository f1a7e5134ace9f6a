"""How hard English prose is to read: the classic formulas over sentences, words and syllables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|\n\s*\n")
_VOWELS = re.compile(r"[aeiouy]+")
# make, pale, takes, asked; not table, horses, wanted
_SILENT = re.compile(r"(?:[^laeiouy]|[aeiouy]l)e$|(?:[^laeiouycgszxh]|[aeiouy]l)es$|[^td]ed$")


def syllables(word: str) -> int:
    """Groups of vowels, less a silent e at the end: within one of the dictionary's count for nearly every English
    word."""
    lower = word.lower()
    groups = len(_VOWELS.findall(lower))
    return max(1, groups - (groups > 1 and _SILENT.search(lower) is not None))


def readability(texts: Sequence[str]) -> dict[str, Any]:
    """Flesch's reading ease and two school grades; means are over all texts together. Values are None where there is no
    sentence."""
    words: Counter[str] = Counter()
    sentences = 0
    for text in texts:
        words.update(_WORD.findall(text))
        if _WORD.search(text):
            sentences += sum(1 for part in _END.split(text) if _WORD.search(part))
    total = words.total()
    if not total:
        return {
            "flesch_reading_ease": None,
            "flesch_kincaid_grade": None,
            "automated_readability_index": None,
            "words_per_sentence": None,
            "syllables_per_word": None,
            "sample_words": 0,
            "sample_sentences": 0,
        }
    length = total / sentences
    beats = sum(syllables(word) * count for word, count in words.items()) / total
    letters = sum(len(word) * count for word, count in words.items()) / total
    return {
        "flesch_reading_ease": 206.835 - 1.015 * length - 84.6 * beats,  # Flesch 1948, "A new readability yardstick"
        "flesch_kincaid_grade": 0.39 * length + 11.8 * beats - 15.59,  # Kincaid et al. 1975
        "automated_readability_index": 4.71 * letters + 0.5 * length - 21.43,  # Senter & Smith 1967
        "words_per_sentence": length, "syllables_per_word": beats, "sample_words": total, "sample_sentences": sentences,
    }  # fmt: skip
