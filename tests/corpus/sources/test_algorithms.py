"""Algorithmic tasks: references that agree with Python's own ways, inputs that can tell, phrasings apart."""

import bisect
import itertools
import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from lmforge.corpus.sources.algorithms import NAMES, SENTENCES, algorithms, cases, made, worded

# other ways to the same results, where Python has one
OTHERWISE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("bubble_sort", "insertion_sort", "merge_sort", "quick_sort", "heap_sort"), sorted),
    "selection_sort": sorted, "counting_sort": sorted,
    "bubble_sort_descending": lambda items: sorted(items, reverse=True),
    "merge_sorted": lambda a, b: sorted(a + b),
    "is_sorted": lambda items: items == sorted(items),
    "linear_search": lambda items, target: items.index(target) if target in items else -1,
    "binary_search": lambda items, target: bisect.bisect_left(items, target) if target in items else -1,
    "maximum": max, "minimum": min, "mean": statistics.fmean, "median": statistics.median,
    "count_occurrences": lambda items, target: items.count(target),
    "factorial": math.factorial, "factorial_recursive": math.factorial, "gcd": math.gcd, "lcm": math.lcm,
    "power": pow, "to_binary": lambda n: f"{n:b}", "from_binary": lambda text: int(text, 2),
    "running_sum": lambda items: list(itertools.accumulate(items)),
    "differences": lambda items: [b - a for a, b in itertools.pairwise(items)],
    "pascal_row": lambda n: [math.comb(n, k) for k in range(n + 1)],
    "triangular": lambda n: sum(range(n + 1)), "hanoi": lambda n: 2**n - 1,
    "grid_paths": lambda rows, columns: math.comb(rows + columns - 2, rows - 1),
    "flatten": lambda lists: list(itertools.chain(*lists)),
    "remove_duplicates": lambda items: list(dict.fromkeys(items)),
    "is_prime": lambda n: n > 1 and all(n % d for d in range(2, n)),
    "maximum_subarray": lambda items: max(
        sum(items[i:j]) for i in range(len(items)) for j in range(i + 1, len(items) + 1)
    ),
    "two_sum": lambda items, target: any(a + b == target for a, b in itertools.combinations(items, 2)),
    "knapsack": lambda weights, values, room: max(
        sum(v for _, v in chosen)
        for n in range(6)
        for chosen in itertools.combinations(list(zip(weights, values, strict=True)), n)
        if sum(w for w, _ in chosen) <= room
    ),
    "anagrams": lambda a, b: sorted(a) == sorted(b),
    "divisors": lambda n: [d for d in range(1, n + 1) if not n % d],
}  # fmt: skip


def function_of(name: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(algorithms()[name].reference("chosen"), names)
    function: Callable[..., Any] = names["chosen"]
    return function


@pytest.mark.parametrize("name", OTHERWISE)
def test_references_agree_with_another_way(name: str) -> None:
    function = function_of(name)
    for given in cases(name, 1, 25):
        assert function(*given) == pytest.approx(OTHERWISE[name](*given)), given


def test_there_are_enough_of_every_kind() -> None:
    families = [each.family for each in algorithms().values()]
    assert len(families) >= 60
    assert {"sorting", "searching", "sequences", "strings", "graphs", "dynamic programming", "matrices"} <= set(
        families
    )
    for each in algorithms().values():
        assert len(set(each.train)) >= 3
        assert len(set(each.held_out)) >= 2


def test_hidden_inputs_tell_tasks_apart() -> None:
    """No constant answers all inputs of a task, and they are the same again."""
    for name in algorithms():
        function = function_of(name)
        drawn = cases(name, 0, 20)
        assert drawn == cases(name, 0, 20)
        assert len({repr(function(*given)) for given in cases(name, 0, 20)}) > 1, name


def test_held_out_phrasings_are_other_text() -> None:
    train = {phrasing for each in algorithms().values() for phrasing in each.train}
    held_out = [phrasing for each in algorithms().values() for phrasing in each.held_out]
    assert not train & set(held_out)
    assert len(held_out) == len(set(held_out))
    questions = {made(random.Random(n)).question for n in range(400)}
    assert not any(phrasing in question for phrasing in held_out for question in questions)


def test_a_task_is_worded_with_the_name_that_its_solution_has() -> None:
    for n in range(40):
        task = made(random.Random(n), held_out=True, families=("sorting", "sequences"))
        assert task == made(random.Random(n), held_out=True, families=("sorting", "sequences"))
        assert task.name in NAMES
        assert f"{task.name}({task.algorithm.parameters})" in task.question
        assert f"def {task.name}({task.algorithm.parameters}):" in task.solution
        assert "NAME" not in task.solution
    assert len({worded(task.algorithm, "x", random.Random(n)).question for n in range(90)}) > len(SENTENCES)
