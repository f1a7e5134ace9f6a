"""Easy data augmentation (Wei & Zou 2019): a text with some words exchanged for similar ones, swapped, left out or put
in.

    lexicon = Lexicon.build(texts)
    augment("The old man walks slowly.", rates, lexicon, rng)

The lexicon is built from the corpus itself, so that it speaks its language and needs no download: words that stand
between the same neighbours are taken for similar (Harris 1954). Each word of the commonest `WORDS` is described by the
words one and two places to its left and right, each place apart, weighted by positive pointwise mutual information
(Bullinaria & Levy 2007); similarity is the cosine, and only words that are among each other's `NEAREST` count. Such
words are of one kind (days, colours, verbs of motion), not always of one
meaning: an augmented text keeps its form, and may say something else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import sparse

from lmforge.corpus.synthesize.noise import words

WORDS = 4000  # words described: the commonest
CONTEXTS = 2000  # neighbours they are described by
NEAREST, LEAST = 5, 0.25  # similar words kept of each, and the least similarity
SHORTEST, RAREST = 3, 5  # letters and occurrences of a word that may be exchanged
PLACES = (-2, -1, 1, 2)
_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclasses.dataclass(frozen=True)
class Rates:
    """The chance of each change, for each word."""

    synonym: float = 0.1
    swap: float = 0.1
    delete: float = 0.1
    insert: float = 0.1


class Lexicon:
    """Word (lower case) → similar words, the most similar first."""

    def __init__(self, similar: Mapping[str, tuple[str, ...]]) -> None:
        self.similar = dict(similar)

    @classmethod
    def build(cls, texts: Iterable[str]) -> Lexicon:
        """From `texts`, read once into word numbers (4 bytes a word)."""
        ids: dict[str, int] = {}
        stream = [
            np.array(
                [ids.setdefault(word.lower(), len(ids)) for word in _LETTERS.findall(text)] + [-1] * 2, dtype=np.int32
            )
            for text in texts
        ]
        flat = np.concatenate(stream) if stream else np.empty(0, dtype=np.int32)
        counts = np.bincount(flat[flat >= 0], minlength=len(ids))
        names = list(ids)
        order = sorted(range(len(names)), key=lambda word: (-counts[word], names[word]))
        rank = np.full(len(names) + 1, len(names), dtype=np.int64)  # the last entry serves -1
        rank[order] = np.arange(len(order))
        ranked = rank[flat]
        chosen = [word for word in order[:WORDS] if counts[word] >= RAREST]
        similarity = _similarity(ranked, len(chosen))
        may = np.array([len(names[word]) >= SHORTEST for word in chosen], dtype=bool)
        return cls(_mutual(similarity, [names[word] for word in chosen], may))

    def like(self, word: str, rng: np.random.Generator) -> str | None:
        """A similar word in the same capitals, or None where none is known."""
        others = self.similar.get(word.lower())
        if not others:
            return None
        other = others[int(rng.integers(len(others)))]
        return (
            other.upper()
            if word.isupper() and len(word) > 1
            else other[0].upper() + other[1:]
            if word[0].isupper()
            else other
        )


def _similarity(ranked: np.ndarray, size: int) -> sparse.csr_matrix:
    """(size, size): cosines of the words' PPMI vectors. `ranked`: the text as ranks by frequency, texts parted by large
    numbers."""
    blocks = []
    for place in PLACES:
        word, near = (ranked[-place:], ranked[:place]) if place < 0 else (ranked[:-place], ranked[place:])
        inside = (word < size) & (near < min(CONTEXTS, size))
        ones = np.ones(int(inside.sum()))
        blocks.append(sparse.csr_matrix((ones, (word[inside], near[inside])), shape=(size, min(CONTEXTS, size))))
    together = sparse.hstack(blocks).tocoo()
    if not together.nnz:
        return sparse.csr_matrix((size, size))
    of_word, of_near = (np.asarray(together.sum(axis)).ravel() for axis in (1, 0))
    weight = np.log(together.data * together.data.sum() / (of_word[together.row] * of_near[together.col]))
    vectors = sparse.csr_matrix((np.maximum(weight, 0), (together.row, together.col)), shape=together.shape)
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(1)).ravel())
    vectors = sparse.diags(1 / np.maximum(lengths, 1e-12)) @ vectors
    return (vectors @ vectors.T).tocsr()


def _mutual(similarity: sparse.csr_matrix, names: list[str], may: np.ndarray) -> dict[str, tuple[str, ...]]:
    """For each word the others that are among its nearest, and it among theirs."""
    nearest: list[dict[int, float]] = []
    for word in range(len(names)):
        row = slice(similarity.indptr[word], similarity.indptr[word + 1])
        others, values = similarity.indices[row], similarity.data[row].round(6)
        good = (others != word) & (values >= LEAST) & may[others] if may[word] else np.zeros(len(others), dtype=bool)
        pairs = sorted(zip(-values[good], others[good], strict=True))[:NEAREST]
        nearest.append({int(other): -float(value) for value, other in pairs})
    mutual = {
        names[word]: tuple(names[other] for other in near if word in nearest[other])
        for word, near in enumerate(nearest)
    }
    return {word: others for word, others in mutual.items() if others}


def augment(text: str, rates: Rates, lexicon: Lexicon, rng: np.random.Generator) -> str:
    """A changed copy of `text`: each word with its own chances; blanks and line ends stay where they are."""
    units = words(text)
    for place, unit in enumerate(units):
        if rng.random() < rates.synonym and (other := _exchanged(unit, lexicon, rng)):
            units[place] = other
    for place in range(len(units) - 1):
        if rng.random() < rates.swap:
            partner = int(rng.integers(len(units)))
            units[place], units[partner] = (
                _with_blanks(units[place], units[partner]),
                _with_blanks(units[partner], units[place]),
            )
    kept = [unit for unit in units if rng.random() >= rates.delete] or units[:1]
    result: list[str] = []
    for unit in kept:
        result.append(unit)
        if rng.random() < rates.insert and (other := _exchanged(kept[int(rng.integers(len(kept)))], lexicon, rng)):
            result.append(f" {other.strip()}")
    return "".join(result)


def _exchanged(unit: str, lexicon: Lexicon, rng: np.random.Generator) -> str | None:
    """The unit with its word exchanged for a similar one; None where it has none."""
    match = _LETTERS.search(unit)
    other = lexicon.like(match.group(), rng) if match else None
    return unit[: match.start()] + other + unit[match.end() :] if match and other else None


def _with_blanks(place: str, unit: str) -> str:
    """The word of `unit` between the blanks of `place`."""
    word = unit.strip()
    return place.replace(place.strip(), word) if place.strip() else place
