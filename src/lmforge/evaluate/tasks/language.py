"""Bits per byte of held-out text: how well a model knows the language, whatever its tokenizer.

    document ─▶ each token's −ln p once, in half-overlapping windows (`lmforge.evaluate.windows`) ─▶ Σ bits / Σ UTF-8
    bytes

The end-of-text token is given, never predicted: neither its bits nor any byte for it count, so that the figure is of
the same text whatever the model. Where parts of a document also stand in the training split, and the corpus says so,
the figure is given again without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lmforge.evaluate.documents import Array, DocumentSettings, Reals, without_leaked
from lmforge.evaluate.task import SEED, Card, Content, Context, Score, Task, in_words, is_number, register
from lmforge.evaluate.windows import TokenScores, score_documents, token_sizes
from lmforge.intervals import bootstrap_ratio
from lmforge.recipe import Recipe

METRIC, BASELINE = "bits per byte", "kneser_ney"
POSITIONS = (0, 64, 256, 1024, 4096)  # bounds of the figures by place in the document, in tokens


@register
class BitsPerByte(Task[DocumentSettings]):
    """Bits per byte of held-out documents, Σ bits / Σ UTF-8 bytes.

    Interval: bootstrap over documents, since tokens of one document are anything but independent. Beside the value:
    nats per token; the mean context, and figures by place in the document with the context that its tokens had; figures
    by genre and by source.
    """

    name = "bits_per_byte"
    settings = DocumentSettings

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """All documents, within `evaluate.max_tokens`."""
        return {"max_tokens": recipe.evaluate.max_tokens}

    def run(self, context: Context, settings: DocumentSettings) -> Score:
        """Score every document once."""
        held_out, length = context.held_out(settings), context.recipe.tokens.context
        documents, table, token_bytes = held_out.documents, held_out.table, token_sizes(context.tokenizer)
        scores = score_documents(context.network, held_out.tokens, table, length)
        bits, sizes = scores.bits_of_documents(len(documents)), table[:, 2]
        low, high = bootstrap_ratio(bits, sizes, SEED) or (None, None)
        rows: list[dict[str, Any]] = [
            {
                "id": document.id,
                "genre": document.genre,
                "source": document.source,
                "bytes": int(size),
                "tokens": int(count) - 1,
                "bits": float(bit),
                "bits_per_byte": float(bit / max(size, 1)),
            }
            for document, (_, count, size), bit in zip(documents, table, bits, strict=True)
        ]
        clean: dict[str, Any] = {}
        if held_out.searched:
            leaked = [document.leaked_bytes for document in documents]
            clean_bits = scores.clean_bits_of_documents(token_bytes, leaked)
            clean_sizes = np.array([int((~mask).sum()) for mask in leaked])
            clean = without_leaked(clean_bits, clean_sizes, sizes, SEED)
            note_clean(rows, clean_bits, clean_sizes)
        return Score(
            metric=METRIC,
            value=float(bits.sum() / sizes.sum()),
            low=low,
            high=high,
            items=len(documents),
            higher_is_better=False,
            comparison_key={
                "data": held_out.data_hash,
                "marks": "end of text before each document, given and not scored",
                "prompt": (
                    f"windows of {length} tokens within a document, moved on by {length // 2}, each token scored once"
                ),
                "limits": limits(settings),
            },
            extra={
                "tokens": len(scores.nats),
                "bytes": int(sizes.sum()),
                "nats_per_token": float(scores.nats.mean()),
                "context": length,
                "mean_context": float(scores.seen.mean()),
                "by_position": by_position(scores, token_bytes),
                "by_genre": _by([document.genre for document in documents], bits, sizes),
                "by_source": _by([document.source for document in documents], bits, sizes),
            },
            rows=rows,
            ratio=("bits", "bytes"),
            clean=clean,
        )

    def headline(self, score: Content) -> str:
        """The figure of the test text."""
        value = score.get("value")
        return in_words(f"{value:.3f} bits per byte (test)", score) if is_number(value) else ""

    def card(self, score: Content, scores: Mapping[str, Content]) -> Card | None:
        """The figure, and how far it is from the n-gram baseline's on the same bytes."""
        value = score.get("value")
        if not is_number(value):
            return None
        title = "bits per byte, held-out text"
        baseline = scores.get(BASELINE, {})
        against, clean = baseline.get("value"), ""
        if is_number(score.get("clean_value")):
            clean = f"{score['clean_value']:.4g} on unleaked bytes"
            clean += f" against {baseline['clean_value']:.4g}" if is_number(baseline.get("clean_value")) else ""
        if not is_number(against) or not against:
            return Card(title, value, "; ".join(filter(None, ("no baseline scored", clean))))
        ratio = value / against
        note = "; ".join(filter(None, (f"5-gram Kneser-Ney ({against:.4g})", clean)))
        return Card(title, value, note, f"{100 * abs(1 - ratio):.1f}% {'below' if ratio <= 1 else 'above'}", ratio <= 1)

    def entropy(self, score: Content) -> float | None:
        """The figure is one (of the cross-entropy)."""
        value = score.get("value")
        return float(value) if is_number(value) else None


def limits(settings: DocumentSettings) -> dict[str, Any]:
    """What of the settings bounds the text, for the fingerprint."""
    return {"max_tokens": settings.max_tokens, **({"limit": settings.limit} if settings.limit else {})}


def note_clean(rows: Sequence[dict[str, Any]], bits: Reals, sizes: Array) -> None:
    """Write into each document's row what of it does not stand in training."""
    for row, bit, size in zip(rows, bits, sizes, strict=True):
        row |= {"clean_bits": float(bit), "clean_bytes": int(size)}


def by_position(scores: TokenScores, sizes: Array) -> dict[str, dict[str, Any]]:
    """Figures of tokens 0–63, 64–255, … of their documents: tokens, bits per byte, nats per token, mean context they
    had."""
    result = {}
    for low, high in pairwise((*POSITIONS, 1 << 62)):
        inside = (scores.position >= low) & (scores.position < high)
        if inside.any():
            nats = scores.nats[inside]
            result[f"{low}–{high - 1}" if high < 1 << 62 else f"{low}–"] = {
                "tokens": len(nats),
                "bits_per_byte": float(nats.sum() / math.log(2) / max(1, sizes[scores.token[inside]].sum())),
                "nats_per_token": float(nats.mean()),
                "mean_context": float(scores.seen[inside].mean()),
            }
    return result


def _by(names: Sequence[str], bits: Reals, sizes: Array) -> dict[str, dict[str, Any]]:
    """Documents, bytes and bits per byte of each name's documents."""
    result = {}
    for name in sorted(set(names)):
        rows = [row for row, other in enumerate(names) if other == name]
        size = int(sizes[rows].sum())
        result[name] = {"documents": len(rows), "bytes": size, "bits_per_byte": float(bits[rows].sum() / max(1, size))}
    return result
