"""Programs found in texts and tested; pass@k against drawing k by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.evaluate.sandbox import Limits
from lmforge.evaluate.solutions import (
    Raised,
    alike,
    called,
    pass_at_k,
    pass_figures,
    passes_assertions,
    program_in,
    results_of,
)


def test_programs_are_found_in_answers() -> None:
    code = "def f(x):\n    return x"
    for text in (code, f"\n{code}\n", f"Here it is:\n```python\n{code}\n```\nDone.", f"Sure.\n{code}", f"```\n{code}"):
        assert program_in(text) == code
    assert program_in("nothing") == "nothing"


def test_a_function_is_called_with_every_input_and_its_failures_are_its_own() -> None:
    source = (
        "def f(x):\n    if x == 2: raise ValueError\n    if x == 3: return object()\n"
        "    print('noise')\n    return (x, {1: [x]})"
    )
    results, outcome = results_of(source, "f", [[1], [2], [3], [4]])
    assert results[0] == (1, {1: [1]})
    assert [repr(each) for each in results[1:3]] == ["raised ValueError", "raised no plain value"]
    assert alike(results[3], [4, {1: [4]}])
    assert outcome.stdout.startswith("noise")


def test_what_ends_early_has_no_further_results() -> None:
    source = "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    while x == 5: pass\n    return x"
    results, _ = results_of(source, "f", [[1], [2], [3]])
    assert results[0] == 1
    assert all(isinstance(each, Raised) for each in results[1:])
    results, outcome = results_of(source, "f", [[1], [5]], Limits(seconds=1))
    assert outcome.status in ("time", "cpu")
    assert isinstance(results[1], Raised)
    assert isinstance(results_of("def f(:", "f", [[1]])[0][0], Raised)


def test_results_out_here_are_those_in_there() -> None:
    source = "def f(items):\n    items.sort()\n    return items"
    given_ = [[[3, 1]], [[2]]]
    assert called(source, "f", given_) == [[1, 3], [2]] == results_of(source, "f", given_)[0]
    assert given_ == [[[3, 1]], [[2]]]


@pytest.mark.parametrize(
    ("one", "two", "are"),
    [((1, 2), [1, 2], True), (True, 1, False), (True, True, True), (0.1 + 0.2, 0.3, True), (1, 1.0, True),
     ([1], [1, 2], False),
     ({1: (2,)}, {1: [2]}, True), ({1: 2}, {2: 2}, False), ("a", "a", True), ("1", 1, False), (None, None, True),
     (float("nan"), 1, False)],
)  # fmt: skip
def test_alike(one: object, two: object, are: bool) -> None:
    assert alike(one, two) is are


def test_assertions_have_to_be_come_through() -> None:
    source = "def f(x):\n    return x + 1"
    assert passes_assertions(source, "assert f(1) == 2") == (True, "")
    assert passes_assertions(source, "assert f(1) == 3")[1].startswith("error: AssertionError")
    assert not passes_assertions(source + "\nimport os\nos._exit(0)", "assert f(1) == 3")[0]
    assert not passes_assertions(source + "\nraise SystemExit", "assert f(1) == 2")[0]


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_all_draws(samples: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([n < right for n in range(samples)], k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_figures_have_intervals() -> None:
    value, interval = pass_figures([(1, 1)] * 9 + [(1, 0)], 1, 0)
    assert value == 0.9
    assert interval is not None
    assert interval[0] < 0.9 < interval[1]
    value, interval = pass_figures([(5, 1)] * 20 + [(5, 5)] * 20, 2, 0)
    assert value == pytest.approx((0.4 + 1) / 2)
    assert interval is not None
    assert interval[0] < value < interval[1]
    with pytest.raises(ValueError, match="needs 3 samples"):
        pass_at_k(2, 1, 3)
    assert math.isclose(pass_at_k(200, 10, 100), 1 - math.comb(190, 100) / math.comb(200, 100))
