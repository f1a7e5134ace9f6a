"""Each named algorithm is told from the others by what it compares."""

import pytest

from lmforge.corpus.sources.algorithms import algorithms
from lmforge.evaluate.named import _WATCHED, FORBIDDEN, _lists, _searches, fault
from lmforge.evaluate.solutions import called

SORTS = ("bubble", "insertion", "selection", "merge", "quick", "heap")
NOTED = """
class Noted(int):
    def __lt__(self, other): return note(self, other, int.__lt__)
    def __le__(self, other): return note(self, other, int.__le__)
    def __gt__(self, other): return note(self, other, int.__gt__)
    def __ge__(self, other): return note(self, other, int.__ge__)
    def __eq__(self, other): return note(self, other, int.__eq__)
    __hash__ = int.__hash__
pairs = []
def note(a, b, compare):
    pairs.append((int(a), int(b)))
    return compare(a, b)
def watched(items, *rest):
    pairs.clear()
    solve([Noted(item) for item in items], *rest)
    return list(pairs)
"""


def pairs_of(source: str, case: list[object]) -> list[tuple[int, int]]:
    return called(source + NOTED, "watched", [case])[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("asked", SORTS)
def test_sorts_are_told_apart(asked: str) -> None:
    for given in SORTS:
        source = algorithms()[f"{given}_sort"].reference("solve")
        faults = [_WATCHED[asked](case[0], pairs_of(source, list(case))) for case in _lists(4)]
        assert (not any(faults)) == (asked == given), (asked, given, faults)


def test_search_by_halving() -> None:
    for name, right in (("binary_search", True), ("linear_search", False)):
        source = algorithms()[name].reference("solve")
        faults = [_WATCHED["binary"](case[0], pairs_of(source, case)) for case in _searches()]  # type: ignore[arg-type]
        assert (not any(faults)) is right


def test_programs_are_watched_in_the_sandbox() -> None:
    bubble = algorithms()["bubble_sort"].reference("solve")
    assert fault("bubble", bubble, "solve") == ""
    assert fault("quick", bubble, "solve") == "does not begin by comparing all items with one"
    assert "could not be watched" in fault("bubble", "def solve(items):\n    raise ValueError", "solve")


def test_calls_that_do_the_work_are_seen() -> None:
    assert fault("merge", "def f(items):\n    return sorted(items)", "f") == "calls sorted"
    assert fault("nosort", "def f(items):\n    items.sort()\n    return items", "f") == "calls sort"
    assert (
        fault("binary", "import bisect\ndef f(a, x):\n    return bisect.bisect_left(a, x)", "f") == "calls bisect_left"
    )
    assert fault("recursive", "def f(n):\n    return n", "f") == "is not recursive"
    assert fault("recursive", "def f(n):\n    return n and f(n - 1)", "f") == ""
    assert fault("bubble", "def f(:", "f") == "no Python"
    assert {each.check for each in algorithms().values()} - {""} <= set(FORBIDDEN)
