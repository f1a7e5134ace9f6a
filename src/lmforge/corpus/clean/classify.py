"""A trainable judge of quality: a linear classifier on hashed words and word pairs, fed by good and bad examples.

    text ─scan─▶ word hashes ─▶ words and pairs in 2^18 places ─▶ logistic regression (scikit-learn) ─▶ probability of
    being good

In the manner of the classifiers of GPT-3 (Brown et al. 2020, appendix A: logistic regression on hashed features) and of
fastText (Joulin et al. 2017: words and pairs). A saved classifier is arrays and JSON in one .npz file; nothing in it is
executed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmforge.corpus.clean.scan import Hashes, scan_words
from lmforge.corpus.sources.examples import examples_hash, texts_at
from lmforge.errors import InputError
from lmforge.recipe import Quality

PLACES = 1 << 18
READ = 20_000  # characters of a text that are judged
FEWEST = 20  # examples of each kind
MOST = 50_000  # examples of each kind that are learned from
HELD_OUT = 5  # every fifth example is kept out, by its hash, to measure the classifier
FORMAT = 1
_PAIR = np.uint64(0x9E3779B97F4A7C15)
Features = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Classifier:
    """Weights of the places (PLACES,), a bias, and `report`: accuracy on held-out examples with its interval, and
    counts."""

    weights: npt.NDArray[np.float32]
    bias: float
    report: dict[str, Any]

    def probability(self, text: str) -> float:
        """That the text is of the good kind, in [0, 1]."""
        features = _features(text)
        value = self.bias + (float(self.weights[features].sum()) / math.sqrt(len(features)) if len(features) else 0.0)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, value))))

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
        np.savez(temporary, weights=self.weights, bias=np.float64(self.bias), report=np.array(json.dumps(self.report)))
        temporary.replace(path)


def load(path: Path) -> Classifier:
    """Read a saved classifier.

    Raises:
        InputError: the file is no such classifier, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            weights, bias, report = file["weights"], float(file["bias"]), json.loads(str(file["report"]))
        if weights.shape != (PLACES,) or weights.dtype != np.float32 or report["format"] != FORMAT:
            raise ValueError("of another format")
    except Exception as error:  # numpy's and zipfile's many ways to say that a file is not theirs
        raise InputError(
            f"{path}: not a quality classifier, or damaged ({error}); remove it, and it is trained anew"
        ) from error
    return Classifier(weights, bias, report)


@functools.lru_cache(maxsize=4)
def classifier(settings: Quality) -> Classifier:
    """The classifier of these examples: the one kept at `settings.model` if they are unchanged, else trained.

    Raises:
        InputError: the examples cannot be read or are too few.
    """
    examples = hashlib.sha256(f"{examples_hash(settings.good)} {examples_hash(settings.bad)}".encode()).hexdigest()
    if (
        settings.model is not None
        and settings.model.exists()
        and (kept := load(settings.model)).report["examples"] == examples
    ):
        return kept
    good, bad = ([*_some(texts_at(path))] for path in (settings.good, settings.bad))
    for name, path, texts in (("good", settings.good, good), ("bad", settings.bad, bad)):
        if len(texts) < FEWEST:
            raise InputError(
                f"corpus.quality.{name} {path}: {len(texts)} texts, too few to learn from; give {FEWEST} or more"
            )
    made = train(good, bad, {"examples": examples})
    if settings.model is not None:
        made.save(settings.model)
    return made


def _some(texts: Iterator[str]) -> Iterator[str]:
    for _, text in zip(range(MOST), texts, strict=False):
        yield text[:READ]


def train(good: Sequence[str], bad: Sequence[str], more: dict[str, Any]) -> Classifier:
    """Learn, and measure on the held-out examples; classes weigh the same whatever their numbers."""
    from sklearn.linear_model import LogisticRegression

    texts, labels = [*good, *bad], np.array([1] * len(good) + [0] * len(bad))
    held = np.array([_is_held_out(text) for text in texts])
    if len(set(labels[held])) < 2 or len(set(labels[~held])) < 2:  # a handful of examples: every fifth by place
        held = np.arange(len(texts)) % HELD_OUT == 0
    matrix = _matrix(texts)
    model = LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear", random_state=0)
    model.fit(matrix[~held], labels[~held])
    right = int((model.predict(matrix[held]) == labels[held]).sum())
    low, high = _wilson(right, int(held.sum()))
    report = {
        "format": FORMAT,
        "accuracy": right / int(held.sum()),
        "low": low,
        "high": high,
        "items": int(held.sum()),
        "good": len(good),
        "bad": len(bad),
        "definition": "share of held-out examples told rightly, 95% Wilson interval",
        **more,
    }
    return Classifier(model.coef_[0].astype(np.float32), float(model.intercept_[0]), report)


def _is_held_out(text: str) -> bool:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % HELD_OUT == 0


def _features(text: str) -> Features:
    """The distinct places of the text's words and pairs of words, ascending."""
    words: Hashes = scan_words(text[:READ])[1]
    pairs = (words[:-1] * _PAIR) ^ words[1:]
    return np.unique(np.concatenate([words, pairs]) >> np.uint64(20) & np.uint64(PLACES - 1)).astype(np.int64)


def _matrix(texts: Sequence[str]) -> Any:
    """(texts, PLACES), sparse, each row of length 1."""
    from scipy.sparse import csr_matrix

    rows = [_features(text) for text in texts]
    ends = np.cumsum([0, *(len(row) for row in rows)])
    values = np.concatenate([np.full(len(row), 1 / math.sqrt(max(1, len(row)))) for row in rows])
    return csr_matrix((values, np.concatenate(rows), ends), shape=(len(texts), PLACES))


def _wilson(right: int, items: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927)."""
    z, share = 1.959964, right / items
    centre = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    return max(0.0, centre - half), min(1.0, centre + half)
