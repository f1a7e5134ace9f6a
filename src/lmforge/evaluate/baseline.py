"""What a network has to beat: a 5-gram Kneser-Ney model of bytes, trained on the same training split, scored on the
same test texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmforge.corpus.build import read_documents
from lmforge.corpus.ngram import KneserNey
from lmforge.evaluate.task import SEED, Context, Score
from lmforge.intervals import bootstrap_ratio

ORDER, MODIFIED = 5, True


def kneser_ney(context: Context) -> Score:
    """The task: bits per byte of the n-gram model, in its better form (three discounts an order), on the documents of
    `bits_per_byte`.

    Neither it nor the network is charged for the end of a document. `against` says per model what share of the
    baseline's bits it needs on the same bytes, with an interval from a bootstrap over documents.
    """
    digest = hashlib.sha256()

    def training() -> Iterator[bytes]:
        for document in read_documents(context.corpus_dir, "train"):
            text = document["text"].encode("utf-8", "replace")
            digest.update(hashlib.sha256(text).digest())
            yield text

    model = KneserNey.train(training(), order=ORDER, modified=MODIFIED)
    texts = [document.text.encode("utf-8", "replace") for document in context.documents]
    bits = np.array([-model.log2_probabilities(text).sum() for text in texts])
    sizes = np.array([len(text) for text in texts])
    low, high = bootstrap_ratio(bits, sizes, SEED) or (None, None)
    rows = [
        {"id": document.id, "bytes": int(size), "bits": float(bit), "bits_per_byte": float(bit / max(size, 1))}
        for document, size, bit in zip(context.documents, sizes, bits, strict=True)
    ]
    form = f"{ORDER}-gram, interpolated, {'three discounts' if MODIFIED else 'one discount'} an order"
    return Score(
        metric="bits per byte",
        value=float(bits.sum() / sizes.sum()),
        low=low,
        high=high,
        items=len(texts),
        higher_is_better=False,
        comparison_key={
            "data": context.data_hash,
            "training_data": digest.hexdigest(),
            "prompt": form,
            "marks": "neither begin nor end of a document scored",
            "limits": {"max_tokens": context.recipe.evaluate.max_tokens},
        },
        extra={"bytes": int(sizes.sum()), "form": form, "against": against(context, bits)},
        rows=rows,
        ratio=("bits", "bytes"),
    )


def against(context: Context, baseline: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, dict[str, Any]]:
    """For each model that was scored: its bits over the baseline's (D,) on the same documents, the interval, and both
    in words."""
    result: dict[str, dict[str, Any]] = {}
    for name, score in context.scores.get("bits_per_byte", {}).items():
        bits = np.array([row["bits"] for row in score.rows])
        ratio = float(bits.sum() / baseline.sum())
        low, high = bootstrap_ratio(bits, baseline, SEED) or (None, None)
        words = (
            f"{name} needs {abs(100 * (1 - ratio)):.1f}% {'fewer' if ratio <= 1 else 'more'} bits per byte than "
            f"{ORDER}-gram Kneser-Ney"
        )
        result[name] = {"ratio": ratio, "low": low, "high": high, "words": words}
    return result
