"""What a corpus is about: topics by non-negative matrix factorisation, named by their words, with their coherence.

    texts ─▶ TF-IDF of the words (T, W) ─▶ NMF: share of each topic in each text (T, K), weight of each word in each
    topic (K, W)

NMF (Lee & Seung 1999) on TF-IDF is chosen over LDA by measurement: docs/benchmarks.md has both on labelled news.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TOP = 10  # words that name a topic and that its coherence is measured on
WORDS = 6_000  # the most frequent ones are used
MOST_SHARE = 0.4  # a word in more of the texts tells nothing of their topic
CHARACTERS = 4_000  # of a text
ITERATIONS = 120
LEAST_TEXTS = 20
TOKEN = r"(?u)\b[^\W\d_]{3,}\b"

Reals = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Topics:
    """`shares` (T, K): how much of each text is of each topic, rows sum to 1 (0 for a text without any of the words).
    `words`: the TOP words of each topic, the heaviest first. `npmi`, `umass` (K,): coherence."""

    shares: Reals
    words: list[list[str]]
    npmi: Reals
    umass: Reals

    @property
    def of_text(self) -> npt.NDArray[np.int64]:
        """The main topic of each text: (T,)."""
        return np.asarray(self.shares.argmax(axis=1), np.int64)


def find_topics(texts: Sequence[str], topics: int) -> Topics | None:
    """`topics` topics of the texts; None where there are fewer than 20 texts or too few words. Always the same for the
    same texts."""
    from sklearn.decomposition import NMF  # slow to import, and only this stage needs it
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) < LEAST_TEXTS:
        return None
    vectorizer = TfidfVectorizer(
        max_df=MOST_SHARE,
        min_df=3,
        max_features=WORDS,
        token_pattern=TOKEN,
        stop_words="english",
        sublinear_tf=True,
        dtype=np.float64,
    )
    try:
        weights = vectorizer.fit_transform(text[:CHARACTERS] for text in texts)
    except ValueError:  # its way to say that no word is left
        return None
    topics = min(topics, *weights.shape)
    if topics < 2:
        return None
    model = NMF(topics, init="nndsvda", max_iter=ITERATIONS, tol=1e-3, random_state=0)
    shares = model.fit_transform(weights)
    # a topic's scale may stand on either side of the product
    shares = shares * np.linalg.norm(model.components_, axis=1)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    names = vectorizer.get_feature_names_out()
    top = [np.argsort(-row, kind="stable")[:TOP] for row in model.components_]
    npmi, umass = zip(*(coherence(weights[:, chosen].toarray() > 0) for chosen in top), strict=True)
    return Topics(shares, [[str(names[word]) for word in chosen] for chosen in top], np.array(npmi), np.array(umass))


def coherence(present: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(NPMI, UMass) of the words whose presence in each text is given (T, W), the topic's heaviest word first; means
    over pairs.

    NPMI = log(p(a,b) / p(a)p(b)) / -log p(a,b), from -1 (never together) over 0 (by chance) to 1 (always) (Bouma 2009;
    Lau et al. 2014). UMass = log((D(a,b) + 1) / D(b)), b the heavier word (Mimno et al. 2011, eq. 1), at most about 0.
    """
    texts, words = present.shape
    together = present.T.astype(np.float64) @ present
    alone = np.diag(together)
    npmi, umass = [], []
    for later in range(1, words):
        for earlier in range(later):
            both = together[later, earlier]
            if not both:
                npmi.append(-1.0)
            elif both == texts:
                npmi.append(1.0)
            else:
                npmi.append(float(np.log(both * texts / (alone[later] * alone[earlier])) / -np.log(both / texts)))
            umass.append(float(np.log((both + 1) / max(1.0, alone[earlier]))))
    return (float(np.mean(npmi)), float(np.mean(umass))) if npmi else (0.0, 0.0)


def topic_figures(texts: Sequence[str]) -> dict[str, Any]:
    """Topics of a sample, the largest first: words, share of the text, coherence. Their number grows with the sample,
    from 5 to 20."""
    fitted = find_topics(texts, int(np.clip(round(np.sqrt(len(texts) / 2)), 5, 20)))
    definition = (
        f"non-negative factorisation of TF-IDF over the first {CHARACTERS:,} characters of each piece; share: mean "
        "over pieces; "
        f"coherence of the {TOP} heaviest words: NPMI (-1 to 1) and UMass, counted in the same pieces"
    )
    if fitted is None:
        return {"definition": definition, "sample_pieces": len(texts), "topics": [], "npmi": None, "umass": None}
    shares = fitted.shares.mean(axis=0)
    order = sorted(range(len(shares)), key=lambda topic: (-shares[topic], fitted.words[topic]))
    return {
        "definition": definition, "sample_pieces": len(texts),
        "npmi": float(fitted.npmi.mean()), "umass": float(fitted.umass.mean()),
        "topics": [
            {"name": ", ".join(fitted.words[topic][:3]), "words": fitted.words[topic], "share": float(shares[topic]),
             "npmi": float(fitted.npmi[topic]), "umass": float(fitted.umass[topic])}
            for topic in order
        ],
    }  # fmt: skip
