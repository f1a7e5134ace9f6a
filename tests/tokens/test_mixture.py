"""Kinds of text in their shares, every row of a kind once, found from the row's number alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.recipe import Recipe, parse_recipe
from lmforge.tokens.mixture import CONSTANT, Mixture, at, curricula, weights_of
from lmforge.tokens.shards import Group

WEIGHTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=4).map(
    lambda parts: [(0.0 if number == 0 else begin, weight) for number, (begin, weight) in enumerate(sorted(parts))]
)


@given(st.lists(st.tuples(st.integers(1, 10**12), WEIGHTS), min_size=1, max_size=5), st.integers(1, 3000))
@settings(max_examples=80)
def test_every_kinds_rows_come_once_each_in_order(kinds: list[tuple[int, Any]], rows: int) -> None:
    mixture = Mixture([tokens for tokens, _ in kinds], [weight for _, weight in kinds], rows)
    groups, places = mixture.find(np.arange(rows + 500))
    for kind in range(len(kinds)):
        mine = places[groups == kind]
        assert mine.tolist() == list(range(len(mine)))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_a_row_is_found_without_the_others(numbers: list[int]) -> None:
    mixture = Mixture([300, 500, 100], [[(0, 1.0), (0.4, 3.0)], [(0, 2.0)], [(0, 0.0), (0.5, 1.0)]], 10**6)
    groups, places = mixture.find(np.array(numbers))
    for number, group, place in zip(numbers, groups.tolist(), places.tolist(), strict=True):
        assert [each[0] for each in mixture.find(np.array([number]))] == [group, place]


def test_the_shares_are_tokens_times_weights_at_every_time() -> None:
    weights = [[(0, 1.0)], [(0, 1.0), (0.5, 4.0)], [(0, 0.0), (0.75, 2.0)]]
    groups, _ = Mixture([600, 300, 100], weights, 10_000).find(np.arange(20_000))
    for first, last, expected in ((0, 5000, (6, 3, 0)), (5000, 7500, (6, 12, 0)), (7500, 20_000, (6, 12, 2))):
        found = np.bincount(groups[first:last], minlength=3) / (last - first)
        assert np.abs(found - np.array(expected) / sum(expected)).max() < 0.001
    # And evenly: no hundred rows stray from it by more than two.
    counts = groups[:5000].reshape(-1, 100)
    assert np.abs((counts == 1).sum(1) - 100 / 3).max() < 2


def test_equal_weights_take_every_text_once_an_epoch() -> None:
    groups, _ = Mixture([7000, 2000, 1000], [CONSTANT] * 3, 10).find(np.arange(1000))
    assert np.bincount(groups).tolist() == [700, 200, 100]


def recipe(mixture: dict[str, Any], **weights: Any) -> Recipe:
    sources = [{"kind": "folder", "path": f"/texts/{name}", "weight": weight} for name, weight in weights.items()]
    return parse_recipe({"corpus": {"sources": sources}, "train": {"mixture": mixture}})


GROUPS = [Group("folder:a", "books", 0, 100), Group("folder:a", "code", 100, 50), Group("folder:b", "code", 150, 70)]


def test_a_sources_curriculum_and_a_genres_weight_multiply() -> None:
    made = recipe({"code": [[0, 2], [0.6, 1]]}, a=[[0, 1.0], [0.5, 3.0]], b=7)
    assert curricula(made) == {"folder:a": [(0.0, 1.0), (0.5, 3.0)]}  # a plain weight is already in the corpus
    books, code, other = weights_of(made, GROUPS)
    assert [at(books, share) for share in (0, 0.49, 0.5, 0.7, 1)] == [1, 1, 3, 3, 3]
    assert [at(code, share) for share in (0, 0.49, 0.5, 0.59, 0.6, 1)] == [2, 2, 6, 6, 3, 3]
    assert [at(other, share) for share in (0, 0.59, 0.6)] == [2, 2, 1]


def test_nothing_stated_is_every_text_equally_often() -> None:
    assert [at(schedule, share) for schedule in weights_of(recipe({}, a=1), GROUPS) for share in (0, 0.5, 1)] == [1] * 9


def test_a_genre_that_is_not_there_and_a_time_without_text_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^train\.mixture: no training text is of genre 'news'; there is books, code$"
    ):
        weights_of(recipe({"news": 2}, a=1), GROUPS)
    with pytest.raises(InputError, match=r"from share 0\.3 of the training on every weight is 0; raise one$"):
        weights_of(recipe({"books": [[0, 1], [0.3, 0]], "code": [[0, 1], [0.3, 0]]}, a=1), GROUPS)
