"""How good a vocabulary is, from the tokens that texts become: short for which texts, used how evenly, learned how
well.

    bytes per token     UTF-8 bytes ÷ tokens, by genre and language: what a context holds, what a text costs
    fertility           tokens ÷ words (runs of characters that are no blanks), by genre and language
    used, rare          share of the vocabulary that occurs at all; tokens that occur less than 10 times stay near their
    random start and
                        can misbehave when a prompt has them (Land & Bartolo 2024)
    entropy             H = -Σ p log2 p of the tokens' shares p, in bits: what a model without context pays a token
    Rényi efficiency    H_α / log2 |V| with H_α = log2(Σ p^α) / (1 - α), α = 2.5 (Zouhar et al. 2023, definitions 3.2
    and 4.2): 1 where all
                        tokens are equally common; they find it to go with translation quality better than the length of
                        texts does
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.corpus import scripts
from lmforge.tokens.tokenizer import Tokenizer

ALPHA = 2.5
RARE = 10  # occurrences below which a token counts as rare
_SHOWN = 20  # rare tokens that are named


@compiled
def _tally(tokens: NDArray[Any], counts: NDArray[np.int64]) -> None:
    for token in tokens:
        counts[token] += 1


def quality(
    tokenizer: Tokenizer, training: Iterable[NDArray[Any]], documents: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """The figures of a vocabulary: on `training`, arrays of the tokens it was trained on or will be used for, and on
    `documents` {text, genre, meta {language or programming_language}}, held out.

    bytes_per_token and fertility of the documents, by_genre and by_language; of the training tokens: vocabulary_used,
    tokens_unseen, tokens_rare (with those unseen), rare_examples, entropy_bits and renyi_efficiency (None where there
    are no tokens).
    """
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for tokens in training:
        _tally(tokens, counts)
    ordinary = np.ones(len(counts), dtype=bool)
    ordinary[list(tokenizer.special.values())] = False  # no text has special tokens
    rare = np.flatnonzero(ordinary & (counts < RARE))
    rarest = rare[np.argsort(counts[rare], kind="stable")][:_SHOWN]
    return {
        **_lengths(tokenizer, documents),
        "vocabulary_used": float((counts[ordinary] > 0).mean()),
        "tokens_unseen": int((counts[ordinary] == 0).sum()),
        "tokens_rare": len(rare),
        "rare_below": RARE,
        "rare_examples": [
            tokenizer.token_bytes(token).decode("utf-8", "backslashreplace") for token in rarest.tolist()
        ],
        **_spread(counts[ordinary]),
    }


def _lengths(tokenizer: Tokenizer, documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Bytes per token and tokens per word."""
    groups: dict[str, dict[str, list[int]]] = {
        kind: defaultdict(lambda: [0, 0, 0]) for kind in ("all", "genre", "language")
    }
    for document in documents:
        text, meta = document["text"], document.get("meta") or {}
        row = len(text.encode("utf-8", "replace")), len(tokenizer.encode_arrays([text])[0]), len(scripts.words(text))
        language = meta.get("language") or meta.get("programming_language") or "unknown"
        for kind, name in (
            ("all", "all"),
            ("genre", str(document.get("genre", "unknown"))),
            ("language", str(language)),
        ):
            group = groups[kind][name]
            group[:] = [held + amount for held, amount in zip(group, row, strict=True)]
    size, tokens, words = groups.pop("all")["all"]
    figures: dict[str, Any] = {"bytes_per_token": size / max(1, tokens), "fertility": tokens / max(1, words)}
    for kind, members in groups.items():
        figures[f"bytes_per_token_by_{kind}"] = {
            name: size / max(1, tokens) for name, (size, tokens, _) in sorted(members.items())
        }
        figures[f"fertility_by_{kind}"] = {
            name: tokens / max(1, words) for name, (_, tokens, words) in sorted(members.items())
        }
    return figures


def _spread(counts: NDArray[np.int64]) -> dict[str, float | None]:
    total = counts.sum()
    if not total:
        return {"entropy_bits": None, "renyi_efficiency": None}
    shares = counts[counts > 0] / total
    renyi = float(np.log2((shares**ALPHA).sum()) / (1 - ALPHA))
    return {
        "entropy_bits": abs(float((shares * np.log2(shares)).sum())),
        "renyi_efficiency": abs(renyi) / float(np.log2(len(counts))),
    }
