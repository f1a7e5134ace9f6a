"""What only a second look at a finished corpus can tell, from a sample of it: conditional entropy, coverage,
readability, repetition.

    corpus/documents ─▶ pieces_of: a sample by hash ─▶ one function a figure ─▶ "analysis" in corpus/statistics.json

The sample is bounded, so this takes as long for 30 MB as for 570 TB. It depends on the corpus alone: the same bytes
give the same figures.
"""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmforge.corpus import scripts
from lmforge.corpus.measure import conditional, mixing
from lmforge.corpus.measure.entities import entity_figures
from lmforge.corpus.measure.genres import genre_figures
from lmforge.corpus.measure.lexical import heaps, measured_growth, repetition, type_token
from lmforge.corpus.measure.readability import readability
from lmforge.corpus.measure.sampling import SampledPiece, pieces_of
from lmforge.corpus.measure.topics import topic_figures
from lmforge.recipe import Recipe

ORDER = 5  # of the n-gram models
HELD_OUT = 8  # the held-out sample is this many times smaller than the training one
BYTES = 2_000_000  # of the sample that the models of bytes, the slower compressor and the recogniser of names see
LANGUAGES = 1_000  # pieces whose language is told
LANGUAGE_CHARACTERS = 2_000  # of each
LEAST_PROSE = 0.5  # share of characters that are letters or spaces; below it a piece is no prose (tables, code)
DIGITS = 6  # significant ones in what is written: the rest differs between machines


def analyse(corpus_dir: Path, recipe: Recipe) -> dict[str, Any]:
    """Figures of a finished corpus directory, JSON-ready, each with its definition and sample size; {} for
    `corpus.analyse_bytes` = 0.

    Raises:
        InputError: a shard is damaged.
    """
    limit = recipe.corpus.analyse_bytes
    if not limit:
        return {}
    train = pieces_of(corpus_dir, "train", limit)
    held_out = pieces_of(corpus_dir, "test", limit // HELD_OUT) + pieces_of(corpus_dir, "valid", limit // HELD_OUT // 4)
    texts = [piece.text for piece in train]
    prose = [piece for piece in train if _is_prose(piece)]
    figures = {
        "sample": _sample(train, held_out),
        "entropy": entropies(texts, [piece.text for piece in held_out]),
        "heaps": heaps(measured_growth(texts)),
        "type_token": type_token(texts),
        "repetition": repetition(texts),
        "readability": _readabilities(prose),
        "languages": languages(train),
        "entities": entity_figures(
            [data.decode(errors="ignore") for data in _cut([piece.text for piece in prose], BYTES)]
        ),
        "topics": topic_figures(texts),
        "genres": genre_figures(train, held_out),
    }
    return {name: _rounded(value) for name, value in figures.items()}


def _sample(train: Sequence[SampledPiece], held_out: Sequence[SampledPiece]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "definition": (
            "pieces of at most 16,384 characters, chosen by hash so that every byte is as likely; held_out: test and "
            "validation"
        )
    }
    for name, part in (("train", train), ("held_out", held_out)):
        size = sum(len(piece.text.encode()) for piece in part)
        figures[name] = {"pieces": len(part), "documents": len({piece.document for piece in part}), "bytes": size}
    return figures


def entropies(train: Sequence[str], held_out: Sequence[str]) -> dict[str, Any]:
    """Conditional entropies of words and bytes at orders 1 to 5 and the sizes under a compressor: value, definition,
    bits both ways."""
    words, size = sum(len(scripts.words(text)) for text in held_out), sum(len(text.encode()) for text in held_out)
    per_byte = words / size if size else 0.0
    figures: dict[str, Any] = {}
    by_word = conditional.of_words(train, held_out, ORDER)
    for order, bits in enumerate(by_word.bits, start=1):
        figures[f"words_order_{order}"] = {
            "value": bits, "bits_per_word": bits, "bits_per_byte": bits * per_byte,
            "definition": f"held-out cross-entropy of words given the {order - 1} before: interpolated Kneser-Ney, "
                          "new words spelled, white space free",
            "sample_words": by_word.scored, "sample_training_words": by_word.trained, "unseen": by_word.unseen,
        }  # fmt: skip
    by_byte = conditional.of_bytes(_cut(train, BYTES), _cut(held_out, BYTES // HELD_OUT), ORDER)
    for order, bits in enumerate(by_byte.bits, start=1):
        figures[f"bytes_order_{order}"] = {
            "value": bits, "bits_per_word": bits / per_byte if per_byte else 0.0, "bits_per_byte": bits,
            "definition": f"held-out cross-entropy of bytes given the {order - 1} before: interpolated Kneser-Ney",
            "sample_bytes": by_byte.scored, "sample_training_bytes": by_byte.trained,
        }  # fmt: skip
    packed = b"".join(_cut(train, BYTES))
    bits = 8 * len(lzma.compress(packed, preset=6)) / len(packed) if packed else 0.0
    figures["lzma"] = {
        "value": bits, "bits_per_word": bits / per_byte if per_byte else 0.0, "bits_per_byte": bits,
        "definition": "size under LZMA (preset 6) of pieces of the training text, one after another: an upper bound",
        "sample_bytes": len(packed),
    }  # fmt: skip
    told = packed[: BYTES // 2]
    bits = mixing.bits_per_byte(told)
    figures["context_mixing"] = {
        "value": bits,
        "bits_per_word": bits / per_byte if per_byte else 0.0,
        "bits_per_byte": bits,
        "definition": "code length of the same pieces, told once from their beginning by a mixture of "
        "contexts of 0 to 6 bytes and of words "
        "that learns as it reads (PAQ's scheme): an upper bound",
        "sample_bytes": len(told),
    }
    return figures


def _cut(texts: Sequence[str], limit: int) -> list[bytes]:
    """The first texts, as bytes, up to `limit` bytes together."""
    figures: list[bytes] = []
    for text in texts:
        data = text.encode()[:limit]
        limit -= len(data)
        if not data:
            break
        figures.append(data)
    return figures


def _is_prose(piece: SampledPiece) -> bool:
    # the commonest letters and the space: a cheap stand-in for all of them
    letters = sum(map(piece.text.count, "etaoin shrdlu"))
    return piece.genre != "code" and letters >= LEAST_PROSE * len(piece.text)


def _readabilities(prose: Sequence[SampledPiece]) -> dict[str, Any]:
    """The formulas over all prose of the sample, and by genre."""
    genres = sorted({piece.genre for piece in prose})
    return {
        "definition": "Flesch 1948, Kincaid 1975, Senter & Smith 1967, over English prose (genre not code, "
        "mostly letters); "
        "ease falls and grades rise with difficulty",
        **readability([piece.text for piece in prose]),
        "genres": {genre: readability([piece.text for piece in prose if piece.genre == genre]) for genre in genres},
    }


def languages(pieces: Sequence[SampledPiece]) -> dict[str, Any]:
    """The languages of the pieces' beginnings, code left out, as py3langid tells them (97 languages, its model ships
    with it)."""
    from py3langid import langid  # its model takes most of a second to load

    told = [
        piece.text[:LANGUAGE_CHARACTERS]
        for piece in pieces
        if piece.genre != "code" and any(map(str.isalpha, piece.text))
    ][:LANGUAGES]
    counts = Counter(str(langid.classify(text)[0]) for text in told)
    return {
        "definition": (
            f"most likely language of the first {LANGUAGE_CHARACTERS:,} characters of a piece, code left out "
            "(py3langid)"
        ),
        "shares": {
            name: count / len(told) for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        },
        "sample_pieces": len(told),
    }


def _rounded(value: Any) -> Any:
    """The same with floats cut to 6 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
