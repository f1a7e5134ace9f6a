"""Which documents are held out: decided by each document's text alone, as long as every split gets some."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.sources.document import Document
from lmforge.errors import InputError

SPLITS = ("train", "valid", "test")
VALID_SHARE = 0.2  # of what is held out; the rest is the test set
LEAST_DOCUMENTS = 3


def unit(data: bytes) -> float:
    """8 uniform bytes as a number in [0, 1), exactly representable (53 bits)."""
    return (int.from_bytes(data, "big") >> 11) / (1 << 53)


def place_of(document: Document, digest: bytes) -> float:
    """Where a document lies in [0, 1): by its text's digest, or by `meta.split_key`, which it shares with those it must
    not be parted from.

    One that is made from others (`meta.synthetic`) lies at the end: it is for training only. So would be a task made by
    code beside real texts, but these never come here: tasks are placed where they are all there is.
    """
    if document["meta"].get("synthetic", "procedural") != "procedural":
        return math.nextafter(1, 0)
    key = document["meta"].get("split_key")
    return unit(digest[:8] if key is None else hashlib.sha256(str(key).encode()).digest()[:8])


def split_at(place: float, bounds: tuple[float, float]) -> str:
    """The split of a document that lies at `place`."""
    return "valid" if place < bounds[0] else "test" if place < bounds[1] else "train"


def split_bounds(
    holdout: float, places: Callable[[], Iterable[NDArray[np.float64]]], dropped: Callable[[], Counter[str]]
) -> tuple[float, float]:
    """(valid_below, test_below): a document below the first is valid, below the second test, else train.

    The bounds are holdout/5 and holdout, so a document's split depends on its own text alone and stays when others are
    added. Only where a held-out part would be empty (a handful of documents) are they raised to take in the document
    that lies nearest. `places()` streams the documents' places in arrays, and is asked twice; `dropped()` counts for
    the message.

    Raises:
        InputError: a split would stay empty.
    """
    count, first, last = 0, 1.0, 0.0
    for each in places():
        if each.size:
            count, first, last = count + each.size, min(first, float(each.min())), max(last, float(each.max()))
    if count < LEAST_DOCUMENTS:
        raise InputError(_too_few(holdout, count, "at least one each is needed for train, valid and test", dropped()))
    valid = max(VALID_SHARE * holdout, math.nextafter(first, 1))
    if last < valid:
        raise InputError(_too_few(holdout, count, "all fall in the held-out part", dropped()))
    nearest = min(float(beyond.min()) for each in places() if (beyond := each[each >= valid]).size)
    test = max(holdout, math.nextafter(nearest, 1))
    if last < test:
        raise InputError(_too_few(holdout, count, "all fall in the held-out part", dropped()))
    return valid, test


def refuse_too_few(holdout: float, count: int, dropped: Callable[[], Counter[str]]) -> None:
    """Raises:
    InputError: fewer documents than there are splits.
    """
    if count < LEAST_DOCUMENTS:
        raise InputError(_too_few(holdout, count, "at least one each is needed for train, valid and test", dropped()))


def _too_few(holdout: float, count: int, cause: str, dropped: Counter[str]) -> str:
    why = ", ".join(f"{number} {reason}" for reason, number in dropped.most_common(3))
    return (
        f"corpus.sources: {count} documents are left{f' (dropped: {why})' if why else ''}, "
        f"too few to hold some out: {cause}; "
        f"add texts, split them into more files, or change corpus.holdout (now {holdout})"
    )
