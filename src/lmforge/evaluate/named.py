"""Is it the algorithm that was asked for? What can be seen of that from outside: which library calls a program makes,
and which items it compares, in which order.

    fault("bubble", source, "solve")  →  "" or what speaks against it

Items are numbers that note every comparison (a, b). Bubble sort compares neighbours and carries the largest along;
insertion sort takes one new item after another; selection sort compares all pairs, holding on to the least; merge sort
makes few comparisons on any input; quick sort begins by comparing all with one; heap sort makes few on any input;
binary search looks at a handful of a thousand. A program that hides another algorithm with the same comparisons passes.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from lmforge.evaluate.solutions import Raised, results_of

Pair = tuple[int, int]
SIZE = 24  # items of a list whose comparisons are looked at
SEARCHED = 1024
_SORTING = {"sorted", "sort", "nsmallest", "nlargest", "merge", "insort", "insort_left", "insort_right"}
_HEAP = {"heapify", "heappush", "heappop", "heapreplace", "heappushpop"}
FORBIDDEN: dict[str, set[str]] = {
    "bubble": _SORTING | _HEAP, "insertion": _SORTING | _HEAP, "selection": _SORTING | _HEAP, "merge": _SORTING | _HEAP,
    "quick": _SORTING | _HEAP, "heap": _SORTING, "nosort": _SORTING | _HEAP,
    "binary": {"index", "bisect", "bisect_left", "bisect_right", "find"}, "recursive": set(),
}  # fmt: skip
_NOTING = """

class _Noted(int):
    def __lt__(self, other): return _noted(self, other, int.__lt__)
    def __le__(self, other): return _noted(self, other, int.__le__)
    def __gt__(self, other): return _noted(self, other, int.__gt__)
    def __ge__(self, other): return _noted(self, other, int.__ge__)
    def __eq__(self, other): return _noted(self, other, int.__eq__)
    def __ne__(self, other): return _noted(self, other, int.__ne__)
    __hash__ = int.__hash__

_pairs = []

def _noted(one, two, compare):
    _pairs.append((int(one), int(two)))
    return compare(one, two)

def _lmforge_noted(*given):
    _pairs.clear()
    {name}(*[[_Noted(item) for item in each] if isinstance(each, list) else each for each in given])
    return _pairs[:4000]
"""


def fault(check: str, source: str, name: str) -> str:
    """What speaks against a program being the algorithm named; "" where nothing does. `check` is a key of FORBIDDEN."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "no Python"
    used = {
        call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        for call in _calls(tree)
    }
    if wrong := sorted(used & FORBIDDEN[check]):
        return f"calls {wrong[0]}"
    if check == "recursive":
        return "" if name in used else "is not recursive"
    if check == "nosort":
        return ""
    cases = _searches() if check == "binary" else _lists(4)
    noted, _ = results_of(source + _NOTING.format(name=name), "_lmforge_noted", cases)
    for case, pairs in zip(cases, noted, strict=True):
        if isinstance(pairs, Raised):
            return f"could not be watched ({pairs.why})"
        if why := _WATCHED[check](list(case[0]), [(a, b) for a, b in pairs]):
            return why
    return ""


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _lists(count: int) -> list[list[Any]]:
    """Lists of different numbers in random order, the last one in reverse."""
    rng = random.Random(0)
    return [[rng.sample(range(SIZE), SIZE)] for _ in range(count - 1)] + [[list(range(SIZE))[::-1]]]


def _searches() -> list[list[Any]]:
    return [[list(range(0, 2 * SEARCHED, 2)), target] for target in (0, 2 * SEARCHED - 2, 777, 1000)]


def _neighbours(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Bubble sort: each comparison is of neighbours, which change places or not; the first pass goes along the list."""
    if len(pairs) < len(items) - 1:
        return "compares too few items for bubble sort"
    for sign in (1, -1):  # ascending, descending
        now = list(items)
        first: list[int] = []
        for a, b in pairs:
            left, right = sorted((now.index(a), now.index(b)))
            if right - left != 1:
                break
            first.append(left)
            if sign * now[left] > sign * now[right]:
                now[left], now[right] = now[right], now[left]
        else:
            wanted = list(range(len(items) - 1))
            return "" if first[: len(wanted)] in (wanted, wanted[::-1]) else "its first pass does not go along the list"
    return "compares items that are no neighbours"


def _one_by_one(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Insertion sort: the latest item looked at moves from the first to the last and never back."""
    latest = [max(items.index(a), items.index(b)) for a, b in pairs]
    return "" if len(latest) >= len(items) - 1 and latest == sorted(latest) else "goes back over items it had inserted"


def _least_first(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Selection sort: all pairs are compared, and the first pass holds on to the least (or the greatest) so far."""
    n = len(items)
    if len(pairs) != n * (n - 1) // 2:
        return "does not compare every item with all that are left"
    if not _neighbours(items, pairs):
        return "compares neighbours only"
    passes = (_holds(way, pairs, best) for way in (items, items[::-1]) for best in (min, max))
    return "" if any(passes) else "its first pass does not look for the least"


def _holds(items: Sequence[int], pairs: Sequence[Pair], best: Callable[[int, int], int]) -> bool:
    """Whether the first comparisons are of each item in turn with the best before it."""
    held = items[0]
    for pair, new in zip(pairs, items[1:], strict=False):
        if set(pair) != {held, new}:
            return False
        held = best(held, new)
    return True


def _few(factor: float) -> Callable[[Sequence[int], Sequence[Pair]], str]:
    def few(items: Sequence[int], pairs: Sequence[Pair]) -> str:
        most = factor * len(items) * math.ceil(math.log2(len(items)))
        least = len(items) - 1
        return "" if least <= len(pairs) <= most else f"makes {len(pairs)} comparisons of {len(items)} items"

    return few


def _merging(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Merge sort: at most n⌈log₂ n⌉ comparisons, and the halves are put in order before they meet."""
    if why := _few(1)(items, pairs):
        return why
    half = len(items) // 2
    across = [number for number, (a, b) in enumerate(pairs) if (items.index(a) < half) != (items.index(b) < half)]
    return (
        "" if across and across == list(range(across[0], len(pairs))) else "does not merge two sorted halves at the end"
    )


def _heaping(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Heap sort: at most 3 n⌈log₂ n⌉ comparisons, in the order of none of the others."""
    others = {
        "bubble": _neighbours,
        "insertion": _one_by_one,
        "selection": _least_first,
        "merge": _merging,
        "quick": _pivot,
    }
    alike = next((name for name, each in others.items() if not each(items, pairs)), None)
    return f"compares as {alike} sort does" if alike else _few(3)(items, pairs)


def _pivot(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    """Quick sort: all other items are compared with one first."""
    common = set(pairs[0]).intersection(*map(set, pairs[: len(items) - 1])) if pairs else set()
    return "" if common else "does not begin by comparing all items with one"


def _halving(items: Sequence[int], pairs: Sequence[Pair]) -> str:
    most = 3 * (math.ceil(math.log2(len(items))) + 1)
    return "" if len(pairs) <= most else f"makes {len(pairs)} comparisons in {len(items)} items"


_WATCHED: dict[str, Callable[[Sequence[int], Sequence[Pair]], str]] = {
    "bubble": _neighbours,
    "insertion": _one_by_one,
    "selection": _least_first,
    "merge": _merging,
    "quick": _pivot,
    "heap": _heaping,
    "binary": _halving,
}
