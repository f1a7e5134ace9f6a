"""How alike an answer is to the right one, and one labelling to another."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import regex

_SIGNS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_SIGNS}]\p{{M}}*|[^\s{_SIGNS}]+")  # a sign of a script without spaces is one of its own
_PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]")


def matthews(true: Sequence[Hashable], given: Sequence[Hashable]) -> float:
    """The correlation of two labellings, −1 to 1; 0 where one has a single label (Gorodkin 2004, eq. 8)."""
    n, hits = len(true), sum(a == b for a, b in zip(true, given, strict=True))
    here, there = Counter(true), Counter(given)
    product = sum(here[label] * there[label] for label in here)
    spread = (n * n - sum(count**2 for count in there.values())) * (n * n - sum(count**2 for count in here.values()))
    return (n * hits - product) / math.sqrt(spread) if spread else 0.0


def f1_of(true: Sequence[int], given: Sequence[int], positive: int = 1) -> float:
    """The harmonic mean of precision and recall of one label; 0 where nothing was rightly found."""
    hits = sum(a == b == positive for a, b in zip(true, given, strict=True))
    total = sum(a == positive for a in true) + sum(b == positive for b in given)
    return 2 * hits / total if total else 0.0


def pearson(true: Sequence[float], given: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side has a single value."""
    a, b = np.asarray(true, dtype=np.float64), np.asarray(given, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread else 0.0


def spearman(true: Sequence[float], given: Sequence[float]) -> float:
    """Spearman's: Pearson's of ranks, equal values sharing the mean of theirs."""
    return pearson(_ranks(true), _ranks(given))


def _ranks(values: Sequence[float]) -> list[float]:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: list[float] = ((ends - (counts - 1) / 2)[inverse]).tolist()
    return result


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and needless blanks, as SQuAD's own script compares answers; the
    punctuation of every script, as MLQA's does (Lewis et al. 2020)."""
    plain = _PUNCTUATION.sub("", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def word_f1(given: str, right: str) -> float:
    """The harmonic mean of precision and recall of words; where one has none, 1 if the other has none either (SQuAD
    2.0)."""
    one, other = (_WORD.findall(normalised(text)) for text in (given, right))
    if not one or not other:
        return float(one == other)
    return 2 * sum((Counter(one) & Counter(other)).values()) / (len(one) + len(other))
