"""How unlike a reference a text is: bits per byte under a Kneser-Ney model of bytes trained on that reference.

Wenzek et al. 2020 (CCNet), section 4.2, keep web text by its perplexity under a model of Wikipedia. Here the bound is
the percentile of the reference's own held-out documents, so that it depends on nothing but the reference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmforge.corpus.ngram import KneserNey
from lmforge.corpus.sources.examples import texts_at
from lmforge.errors import InputError
from lmforge.recipe import Perplexity

TRAINED_ON = 4_000_000  # bytes of the reference
SCORED = 1024  # bytes of each document: its middle
HELD_OUT = 10  # every tenth document of the reference sets the bound
FEWEST = 20  # documents of a reference


@dataclass(frozen=True)
class Unlikeness:
    """A trained model and its bound."""

    model: KneserNey
    bound: float  # bits per byte
    trained_bytes: int
    held_out: int  # documents that the bound was read from

    def save(self, path: Path) -> None:
        """Write it as an .npz file, for other processes to load."""
        figures = {
            "bound": np.array(self.bound),
            "trained_bytes": np.array(self.trained_bytes),
            "held_out": np.array(self.held_out),
        }
        np.savez(path, allow_pickle=False, **figures, **self.model.arrays())

    @classmethod
    def load(cls, path: Path) -> Unlikeness:
        """Read what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        bound, trained, held = (arrays.pop(name).item() for name in ("bound", "trained_bytes", "held_out"))
        return cls(KneserNey.of_arrays(arrays), bound, trained, held)

    def bits_per_byte(self, text: str) -> float:
        """Of the middle `SCORED` bytes of `text`; 0 for an empty text."""
        data = _middle(text)
        return float(-self.model.log2_probabilities(data).mean()) if data else 0.0

    def is_unlike(self, text: str) -> bool:
        """Whether the text is further from the reference than the bound allows."""
        return self.bits_per_byte(text) > self.bound


def _middle(text: str) -> bytes:
    start = max(0, (len(text) - SCORED) // 2)
    return text[start : start + SCORED].encode("utf-8", "replace")[:SCORED]


@functools.lru_cache(maxsize=4)
def unlikeness(settings: Perplexity) -> Unlikeness:
    """Trained on the reference: about five seconds.

    Raises:
        InputError: the reference cannot be read or is too small.
    """
    train, held = list[bytes](), list[str]()
    size = 0
    for number, text in enumerate(texts_at(settings.reference)):
        if number % HELD_OUT == HELD_OUT - 1:
            held.append(text)
        else:
            train.append(text.encode("utf-8", "replace")[: TRAINED_ON - size])
            size += len(train[-1])
        if size >= TRAINED_ON and len(held) >= FEWEST:
            break
    if len(train) + len(held) < FEWEST:
        raise InputError(
            f"corpus.perplexity.reference {settings.reference}: {len(train) + len(held)} documents, too few to learn "
            "what is "
            f"usual; it takes {FEWEST} or more"
        )
    model = Unlikeness(KneserNey.train(train, settings.order), 0.0, size, len(held))
    bound = settings.most_bits_per_byte or float(
        np.percentile([model.bits_per_byte(text) for text in held], settings.percentile)
    )
    return Unlikeness(model.model, bound, size, len(held))
