"""How alike an answer is to the right one, and one labelling to another."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence


def matthews(true: Sequence[str], given: Sequence[str]) -> float:
    """The correlation of two labellings, −1 to 1; 0 where one has a single label (Gorodkin 2004, eq. 8)."""
    n, hits = len(true), sum(a == b for a, b in zip(true, given, strict=True))
    here, there = Counter(true), Counter(given)
    product = sum(here[label] * there[label] for label in here)
    spread = (n * n - sum(count**2 for count in there.values())) * (n * n - sum(count**2 for count in here.values()))
    return (n * hits - product) / math.sqrt(spread) if spread else 0.0


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and needless blanks, as SQuAD's own script compares answers."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def word_f1(given: str, right: str) -> float:
    """The harmonic mean of precision and recall of words; where one has none, 1 if the other has none either (SQuAD
    2.0)."""
    one, other = normalised(given).split(), normalised(right).split()
    if not one or not other:
        return float(one == other)
    return 2 * sum((Counter(one) & Counter(other)).values()) / (len(one) + len(other))
