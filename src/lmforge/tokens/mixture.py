"""Which kind of text each row comes from: weights that may change over the training, a pure function of the row's
number.

A kind's rate is its tokens × its weight, so that with all weights 1 every text comes equally often. The kinds are taken
off one by one: of the rows that come to it, in their order, the first kind takes a share spread evenly, the rest goes
on to the next kind. How many of the first n rows a kind takes is round(Σ shares), in whole numbers of 2⁻²⁰, so any
row's place among its kind's rows is found at once, no row is lost or given twice, and nothing needs saving.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.sources.document import source_name
from lmforge.errors import InputError
from lmforge.recipe import Recipe
from lmforge.tokens.shards import Group

Array = NDArray[np.int64]
Schedule = Sequence[tuple[float, float]]  # (share of training from which it holds, value), the first share 0
CONSTANT: Schedule = ((0.0, 1.0),)
_BITS = 20


def at(schedule: Schedule, share: float) -> float:
    """The value that holds at `share` of the training."""
    return [value for begin, value in schedule if begin <= share][-1]


def curricula(recipe: Recipe) -> dict[str, list[tuple[float, float]]]:
    """The sources whose weight changes over the training, by the name their documents carry."""
    return {
        source_name(source): [*source.curriculum]
        for source in recipe.corpus.sources
        if isinstance(source.weight, tuple)
    }


def weights_of(recipe: Recipe, groups: Sequence[Group]) -> list[Schedule]:
    """The weight of each group over the training: its source's curriculum × what train.mixture gives its genre.

    Raises:
        InputError: at some time nothing has a weight above 0, or train.mixture names a genre that is not there.
    """
    sources = curricula(recipe)
    genres: dict[str, Schedule] = {
        genre: weight if isinstance(weight, tuple) else ((0.0, weight),)
        for genre, weight in recipe.train.mixture.items()
    }
    known = {group.genre for group in groups}
    for genre in genres:
        if genre not in known:
            raise InputError(
                f"train.mixture: no training text is of genre '{genre}'; there is {', '.join(sorted(known))}"
            )
    given = [(sources.get(group.source, CONSTANT), genres.get(group.genre, CONSTANT)) for group in groups]
    begins = sorted({begin for pair in given for schedule in pair for begin, _ in schedule})
    weights = [[(begin, at(source, begin) * at(genre, begin)) for begin in begins] for source, genre in given]
    for place, begin in enumerate(begins):
        if not any(schedule[place][1] for schedule in weights):
            raise InputError(
                f"train.mixture and the weights of corpus.sources: from share {begin} of the training on every weight "
                "is 0; raise one"
            )
    return list(weights)


class Mixture:
    """Row number → (group, place among the group's rows)."""

    def __init__(self, tokens: Sequence[int], weights: Sequence[Schedule], rows: int) -> None:
        """`tokens` and `weights` of each group; `rows` of the whole training, of which schedules give shares."""
        begins = sorted({begin for schedule in weights for begin, _ in schedule})
        bounds = np.array([round(begin * rows) for begin in begins], dtype=np.int64)
        rates = [
            [size * at(schedule, begin) for begin in begins] for size, schedule in zip(tokens, weights, strict=True)
        ]
        # of each kind but the last: bounds, share in each part, taken before it
        self.levels: list[tuple[Array, Array, Array]] = []
        for kind in range(len(tokens) - 1):
            rest = [sum(rate[part] for rate in rates[kind:]) for part in range(len(begins))]
            shares = np.array(
                [
                    round((rates[kind][part] / rest[part] if rest[part] else 1) * (1 << _BITS))
                    for part in range(len(begins))
                ]
            )
            taken = np.concatenate(([0], np.cumsum(shares[:-1] * np.diff(bounds)))).astype(np.int64)
            self.levels.append((bounds, shares.astype(np.int64), taken))
            bounds = bounds - self._taken(kind, bounds)

    def _taken(self, kind: int, numbers: Array) -> Array:
        """How many of the first `numbers` rows that come to a kind it takes."""
        bounds, shares, taken = self.levels[kind]
        part = np.searchsorted(bounds, numbers, side="right") - 1
        exact: Array = taken[part] + shares[part] * (numbers - bounds[part])
        return (exact + (1 << (_BITS - 1))) >> _BITS

    def find(self, numbers: Array) -> tuple[Array, Array]:
        """(group, place) of each row number, int64."""
        groups = np.full(numbers.shape, len(self.levels), dtype=np.int64)
        places, left = numbers.astype(np.int64), np.ones(numbers.shape, dtype=bool)
        for kind in range(len(self.levels)):
            before = self._taken(kind, places)
            own = left & (self._taken(kind, places + 1) > before)
            groups[own] = kind
            places = np.where(own, before, np.where(left, places - before, places))
            left &= ~own
        return groups, places
