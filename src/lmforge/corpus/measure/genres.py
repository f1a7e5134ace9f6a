"""How well the genres of a corpus are told apart by their text alone: a linear classifier and its confusion table on
held-out documents.

Where it is sure and wrong, either the label of a source is or two genres are one. The same classifier judges any labels
of texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmforge.corpus.measure.sampling import SampledPiece
from lmforge.intervals import wilson

CHARACTERS = 2_000  # of each piece, from its beginning
MOST_TRAINING = 3_000
LEAST_TRAINING = 20
TOKEN = r"(?u)[^\W\d_]+|\d|[^\w\s]"  # words, single digits, punctuation: layout and notation tell genres apart too


def predict(train: Sequence[str], labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The label that the training texts give to each of `texts`: ridge regression on TF-IDF of words and pairs of
    words.

    Labels count alike however many texts they have. Needs two distinct labels.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import, and only this stage needs it
    from sklearn.linear_model import RidgeClassifier

    vectorizer = TfidfVectorizer(
        token_pattern=TOKEN, ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True
    )
    try:
        features = vectorizer.fit_transform(text[:CHARACTERS] for text in train)
    except ValueError:  # its way to say that no word is left: the commonest label is all that is known
        return [Counter(labels).most_common(1)[0][0]] * len(texts)
    model = RidgeClassifier(class_weight="balanced", solver="sparse_cg", tol=1e-3).fit(features, labels)
    return [str(label) for label in model.predict(vectorizer.transform([text[:CHARACTERS] for text in texts]))]


def genre_figures(train: Sequence[SampledPiece], held_out: Sequence[SampledPiece]) -> dict[str, Any]:
    """Accuracy and confusion on the first piece of each held-out document; `accuracy` is None where there is one genre
    or too little text."""
    first: dict[str, SampledPiece] = {}
    for piece in held_out:
        first.setdefault(piece.document, piece)  # one each: pieces of one document are no independent tests
    tested = list(first.values())
    known = {piece.genre for piece in train}
    tested = [piece for piece in tested if piece.genre in known]
    outcome: dict[str, Any] = {
        "definition": f"ridge regression on TF-IDF of words and pairs of words of {CHARACTERS:,} "
        f"characters; accuracy on one piece of each "
        "held-out document, 95% interval by Wilson; confusion: true genre → predicted genre → documents",
        "sample_documents": len(tested),
        "sample_training_pieces": len(train[:MOST_TRAINING]),
        "accuracy": None,
        "low": None,
        "high": None,
        "most_frequent": None,
        "confusion": {},
    }
    if len(known) < 2 or len(train) < LEAST_TRAINING or not tested:
        return outcome
    used = train[:MOST_TRAINING]
    predicted = predict(
        [piece.text for piece in used], [piece.genre for piece in used], [piece.text for piece in tested]
    )
    return outcome | confusion([piece.genre for piece in tested], predicted)


def confusion(true: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its interval, the share of the commonest label (what guessing gets), and the table true → predicted
    → count."""
    right = sum(a == b for a, b in zip(true, predicted, strict=True))
    low, high = wilson(right, len(true))
    names = sorted({*true, *predicted})
    pairs = Counter(zip(true, predicted, strict=True))
    return {
        "accuracy": right / len(true),
        "low": low,
        "high": high,
        "most_frequent": max(Counter(true).values()) / len(true),
        "confusion": {a: {b: pairs[a, b] for b in names} for a in names},
    }
