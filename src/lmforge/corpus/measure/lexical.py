"""How the words of a text are spread: Zipf's and Heaps' laws, types and tokens, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lmforge.corpus.scripts import pieces

RUN = 1000  # words: the length at which types are counted against tokens, since the ratio falls with any text's length
LEAST_COUNT = 10  # below it a rank's count is mostly chance, and equal counts make steps
REPEATED_WORDS = 13  # the length of run that contamination is judged by too
LEAST_LINE = 20  # characters; shorter lines (braces, "else:", page numbers) repeat in any text

Integers = npt.NDArray[np.int64]


def fit_line(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, float, float]:
    """Least squares of y on x, both (N,): slope, intercept, share of the variance explained."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) < 2 or np.ptp(xs) == 0:
        return 0.0, float(ys.mean()) if len(ys) else 0.0, 0.0
    slope, intercept = np.polyfit(xs, ys, 1)
    spread = float(((ys - ys.mean()) ** 2).sum())
    left = float(((ys - slope * xs - intercept) ** 2).sum())
    return float(slope), float(intercept), 1 - left / spread if spread else 1.0


def zipf(counts: Integers, points: int = 40) -> dict[str, Any]:
    """The law count ∝ rank^-exponent over ranks evenly spaced in their logarithm, down to counts of 10; `counts` in any
    order."""
    ordered = np.sort(counts)[::-1]
    ranks = (
        np.unique(np.geomspace(1, max(1, len(ordered)), points).astype(np.int64))
        if len(ordered)
        else np.zeros(0, np.int64)
    )
    shown = ordered[ranks - 1] if len(ranks) else ranks
    fitted = shown >= LEAST_COUNT
    slope, intercept, explained = fit_line(np.log(ranks[fitted]), np.log(shown[fitted]))
    return {
        "value": -slope,
        "explained": explained,
        "sample_words": int(ordered.sum()),
        "points": np.stack([ranks, shown], 1).tolist(),
        "definition": (
            "exponent s of Zipf's law, count = C / rank^s: least squares in logarithms over words seen 10 times or more"
        ),
        "constant": float(np.exp(intercept)),
    }


def heaps(points: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The law distinct = K words^β through (words, distinct) pairs of 1,000 words and more."""
    fitted = [pair for pair in points if pair[0] >= RUN]
    slope, intercept, explained = fit_line(
        [np.log(words) for words, _ in fitted], [np.log(distinct) for _, distinct in fitted]
    )
    return {
        "value": slope,
        "constant": float(np.exp(intercept)),
        "explained": explained,
        "sample_words": max((words for words, _ in points), default=0),
        "points": [list(pair) for pair in points],
        "definition": (
            "exponent β of Heaps' law, distinct words = K words^β: least squares in logarithms over texts in random "
            "order"
        ),
    }


def measured_growth(texts: Sequence[str], points: int = 30) -> list[tuple[int, int]]:
    """(words read, distinct words among them) at about `points` lengths evenly spaced in their logarithm, texts in the
    order given."""
    words = [word for text in texts for word in pieces(text)[0]]
    numbers = _numbers(words)
    lengths = (
        np.unique(np.geomspace(min(100, len(words)), len(words), points).astype(np.int64))
        if words
        else np.zeros(0, np.int64)
    )
    highest = np.maximum.accumulate(numbers) if words else numbers  # numbers are given in order of first use
    return [(int(length), int(highest[length - 1]) + 1) for length in lengths]


def type_token(texts: Sequence[str]) -> dict[str, Any]:
    """Distinct words over words, in runs of 1,000 that follow each other (Johnson 1944's mean segmental ratio) and over
    the whole."""
    words = [word for text in texts for word in pieces(text)[0]]
    runs = [len(set(words[start : start + RUN])) / RUN for start in range(0, len(words) - RUN + 1, RUN)]
    return {
        "value": float(np.mean(runs)) if runs else None,
        "spread": float(np.std(runs)) if runs else None,
        "runs": len(runs),
        "definition": (
            f"mean share of distinct words in each {RUN:,} words; spread is the standard deviation over these runs"
        ),
        "whole_sample": len(set(words)) / len(words) if words else None,
        "sample_words": len(words),
    }


def repetition(texts: Sequence[str]) -> dict[str, Any]:
    """What of a sample stands in it before: whole lines by their characters, runs of 13 words by their number."""
    lines = Counter(line for text in texts for line in map(str.strip, text.split("\n")) if len(line) >= LEAST_LINE)
    characters = sum(len(line) * count for line, count in lines.items())
    again = sum(len(line) * (count - 1) for line, count in lines.items())
    runs = np.concatenate([np.zeros(0, np.uint64), *map(_runs, texts)])
    return {
        "repeated_lines": {
            "value": again / characters if characters else None,
            "definition": (
                f"share of the characters of lines ({LEAST_LINE} characters or more) in lines that the sample held "
                "before"
            ),
            "sample_characters": characters,
        },
        "repeated_word_runs": {
            "value": 1 - len(np.unique(runs)) / len(runs) if len(runs) else None,
            "definition": f"share of the runs of {REPEATED_WORDS} words that the sample held before",
            "sample_runs": len(runs),
        },
    }


def _runs(text: str) -> npt.NDArray[np.uint64]:
    """A hash of each run of 13 words of a text: polynomial in the words' own hashes, which one process keeps the
    same."""
    words = np.fromiter(map(hash, pieces(text)[0]), np.int64).astype(np.uint64)
    count = len(words) - REPEATED_WORDS + 1
    run_hashes = np.zeros(max(0, count), np.uint64)
    for back in range(REPEATED_WORDS if count > 0 else 0):
        run_hashes = run_hashes * np.uint64(0x9E3779B97F4A7C15) + words[back : back + count]
    return run_hashes


def _numbers(words: Sequence[str]) -> Integers:
    """Each word's number (N,), in order of first use, from 0."""
    index: dict[str, int] = {}
    return np.fromiter((index.setdefault(word, len(index)) for word in words), np.int64, len(words))
