"""What a network has to beat: a 5-gram Kneser-Ney model of bytes, trained on the same training split, scored on the
same test texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmforge.corpus.build import read_documents
from lmforge.corpus.ngram import KneserNey
from lmforge.evaluate.documents import DocumentSettings, Reals, without_leaked
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, in_words, is_number, register
from lmforge.evaluate.tasks.language import BASELINE, METRIC, limits, note_clean
from lmforge.intervals import bootstrap_ratio
from lmforge.recipe import Recipe

ORDER, MODIFIED = 5, True


@register
class NgramBaseline(Task[DocumentSettings]):
    """Bits per byte of the n-gram model, in its better form (three discounts an order), on the documents of
    `bits_per_byte`.

    Neither it nor the network is charged for the end of a document. `against` says per model what share of the
    baseline's bits it needs on the same bytes, with an interval from a bootstrap over documents.
    """

    name = BASELINE
    settings = DocumentSettings
    per_model = False

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """The documents of `bits_per_byte`."""
        return {"max_tokens": recipe.evaluate.max_tokens}

    def run(self, context: Context, settings: DocumentSettings) -> Score:
        """Count the training split, score the held-out documents."""
        digest = hashlib.sha256()

        def training() -> Iterator[bytes]:
            for document in read_documents(context.corpus_dir, "train"):
                text = document["text"].encode("utf-8", "replace")
                digest.update(hashlib.sha256(text).digest())
                yield text

        model = KneserNey.train(training(), order=ORDER, modified=MODIFIED)
        held_out = context.held_out(settings)
        documents = held_out.documents
        of_bytes = [-model.log2_probabilities(document.text.encode("utf-8", "replace")) for document in documents]
        bits, sizes = np.array([each.sum() for each in of_bytes]), held_out.table[:, 2]
        low, high = bootstrap_ratio(bits, sizes, SEED) or (None, None)
        rows: list[dict[str, Any]] = [
            {"id": document.id, "bytes": int(size), "bits": float(bit), "bits_per_byte": float(bit / max(size, 1))}
            for document, size, bit in zip(documents, sizes, bits, strict=True)
        ]
        clean: dict[str, Any] = {}
        if held_out.searched:
            kept = [~document.leaked_bytes for document in documents]
            clean_bits = np.array([each[mask].sum() for each, mask in zip(of_bytes, kept, strict=True)])
            clean_sizes = np.array([int(mask.sum()) for mask in kept])
            clean = without_leaked(clean_bits, clean_sizes, sizes, SEED)
            note_clean(rows, clean_bits, clean_sizes)
        form = f"{ORDER}-gram, interpolated, {'three discounts' if MODIFIED else 'one discount'} an order"
        return Score(
            metric=METRIC,
            value=float(bits.sum() / sizes.sum()),
            low=low,
            high=high,
            items=len(documents),
            higher_is_better=False,
            comparison_key={
                "data": held_out.data_hash,
                "training_data": digest.hexdigest(),
                "prompt": form,
                "marks": "neither begin nor end of a document scored",
                "limits": limits(settings),
            },
            extra={"bytes": int(sizes.sum()), "form": form, "against": against(context, held_out.data_hash, rows)},
            rows=rows,
            ratio=("bits", "bytes"),
            clean=clean,
        )

    def headline(self, score: Content) -> str:
        """What counting gives."""
        value = score.get("value")
        return in_words(f"{ORDER}-gram Kneser-Ney {value:.3f}", score) if is_number(value) else ""

    def level(self, score: Content) -> tuple[str, float] | None:
        """What the training's curves have to get below."""
        value = score.get("value")
        return (f"{ORDER}-gram Kneser-Ney (test text)", float(value)) if is_number(value) else None

    def sentences(self, score: Content) -> list[str]:
        """How many bits each model needs against it."""
        rows = score.get("against")
        words = [row.get("words") for row in rows.values() if isinstance(row, dict)] if isinstance(rows, dict) else []
        return [each for each in words if isinstance(each, str)]


def against(context: Context, data_hash: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each model that was scored in bits per byte on the same documents: its bits over the baseline's, whose rows
    are given, the interval, and both in words; on the unleaked bytes too, where they are known."""
    result: dict[str, dict[str, Any]] = {}
    for models in context.scores.values():
        for name, score in models.items():
            if score.metric == METRIC and score.comparison_key.get("data") == data_hash and name not in result:
                result[name] = _set_against(name, score.rows, rows)
    return result


def _set_against(name: str, rows: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    def ratio(key: str) -> tuple[float, float | None, float | None]:
        bits, counted = (np.array([row[key] for row in each]) for each in (rows, baseline))
        low, high = _interval(bits, counted)
        return float(bits.sum() / max(counted.sum(), 1e-300)), low, high

    value, low, high = ratio("bits")
    words = f"{name} needs {_words(value)} bits per byte than {ORDER}-gram Kneser-Ney"
    result: dict[str, Any] = {"ratio": value, "low": low, "high": high}
    if all("clean_bits" in row for each in (rows, baseline) for row in each):
        clean, low, high = ratio("clean_bits")
        result |= {"clean_ratio": clean, "clean_low": low, "clean_high": high}
        words += f", and {_words(clean)} on the bytes that do not stand in training"
    return result | {"words": words}


def _interval(bits: Reals, counted: Reals) -> tuple[float | None, float | None]:
    left = counted > 0
    return bootstrap_ratio(bits[left], counted[left], SEED) or (None, None)


def _words(ratio: float) -> str:
    return f"{abs(100 * (1 - ratio)):.1f}% {'fewer' if ratio <= 1 else 'more'}"
