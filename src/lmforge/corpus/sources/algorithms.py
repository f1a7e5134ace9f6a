"""Algorithmic tasks: what a function is to do, in words, and a program that does it.

    task = made(random.Random(1), held_out=True)
    task.question   "Write a Python function run(items) that puts numbers in order by the bubble sort algorithm."
    task.solution   "def run(items): …"
    cases("bubble_sort", seed=0, count=20)   [[[3, 1, 2]], …]     arguments of hidden tests

The tasks stand in algorithms.toml. Of each some phrasings are held out: training texts never use them; the sentence
around a phrasing and the function's name are drawn alike for both. Arguments are drawn anew from a seed; what a
solution ought to give is what the reference gives.
"""

from __future__ import annotations

import dataclasses
import random
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

NAMES = ("solve", "run", "answer", "work", "task", "compute", "func", "process", "helper", "apply_to", "do_it", "f")
SENTENCES = (
    "Write a Python function {name}({parameters}) that {phrasing}.",
    "Write a function {name}({parameters}) in Python. It {phrasing}.",
    "Define {name}({parameters}), a Python function that {phrasing}.",
    "In Python, define a function {name}({parameters}) that {phrasing}.",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One task; fields as in algorithms.toml."""

    name: str
    family: str
    parameters: str
    arguments: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    solution: str
    check: str = ""

    def reference(self, name: str = "NAME") -> str:
        """The solution, its function called `name`."""
        return self.solution.strip("\n").replace("NAME", name)


@dataclasses.dataclass(frozen=True)
class AlgorithmicTask:
    """A task put in words: `name` is what the function is to be called."""

    algorithm: Algorithm
    phrasing: str
    name: str
    question: str
    solution: str


@cache
def algorithms() -> dict[str, Algorithm]:
    """The tasks by name, in the order of the file."""
    read = tomllib.loads(files("lmforge.corpus.sources").joinpath("algorithms.toml").read_text(encoding="utf-8"))
    return {
        name: Algorithm(name, **{**table, "train": tuple(table["train"]), "held_out": tuple(table["held_out"])})
        for name, table in read.items()
    }


def made(rng: random.Random, held_out: bool = False, families: tuple[str, ...] | None = None) -> AlgorithmicTask:
    """A task of one of these families, each as likely as another, in words of its training or held-out phrasings."""
    within = [each for each in algorithms().values() if families is None or each.family in families]
    algorithm = rng.choice(within)
    return worded(algorithm, rng.choice(algorithm.held_out if held_out else algorithm.train), rng)


def worded(algorithm: Algorithm, phrasing: str, rng: random.Random) -> AlgorithmicTask:
    """One phrasing of a task within a sentence, with a name for the function."""
    name = rng.choice(NAMES)
    question = rng.choice(SENTENCES).format(name=name, parameters=algorithm.parameters, phrasing=phrasing)
    return AlgorithmicTask(algorithm, phrasing, name, question, algorithm.reference(name))


def cases(name: str, seed: int, count: int) -> list[list[Any]]:
    """`count` lists of arguments for a task, of JSON values and dictionaries with whole numbers as keys. The same seed
    gives the same."""
    rng = random.Random(f"{name} {seed}")
    wanted = [part.split() for part in algorithms()[name].arguments.split(";")]
    return [_arguments(rng, wanted) for _ in range(count)]


def _arguments(rng: random.Random, wanted: list[list[str]]) -> list[Any]:
    given: list[Any] = []
    for kind, *numbers in wanted:
        given.append(_DRAWN[kind](rng, given, *map(int, numbers)))
    return given


def _ints(rng: random.Random, _given: list[Any], least: int = 0) -> list[int]:
    return [rng.randint(-50, 50) for _ in range(rng.randint(least, 12))]


def _distinct(rng: random.Random, _given: list[Any], least: int = 0) -> list[int]:
    return sorted(rng.sample(range(-50, 50), rng.randint(least, 14)))


def _shuffled(rng: random.Random, given: list[Any]) -> list[int]:
    items = _distinct(rng, given, 2)
    return rng.sample(items, len(items))


def _member(rng: random.Random, given: list[Any]) -> int:
    return int(rng.choice(given[0])) if given[0] and rng.random() < 0.7 else rng.randint(-50, 50)


def _word(rng: random.Random, _given: list[Any], most: int = 9, letters: str = LETTERS) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(0, most)))


def _words(rng: random.Random, _given: list[Any]) -> list[str]:
    return ["".join(rng.choice(LETTERS) for _ in range(size)) for size in rng.sample(range(1, 12), rng.randint(0, 8))]


def _text(rng: random.Random, _given: list[Any], least: int = 0) -> str:
    return " ".join(
        "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(least, 6))
    )


def _palindrome(rng: random.Random, given: list[Any]) -> str:
    half = _word(rng, given, 5, "abc")
    return half + rng.choice(("", "a", "ab")) + half[::-1]


def _other(rng: random.Random, given: list[Any]) -> str:
    """A word that begins as the first argument does, or has its letters, or some other ones."""
    first = str(given[0])
    cut = rng.randint(0, len(first))
    return rng.choice(("".join(rng.sample(first, len(first))), first[:cut] + _word(rng, given), first))


def _matrix(rng: random.Random, _given: list[Any], rows: int = 0, columns: int = 0) -> list[list[int]]:
    rows, columns = rows or rng.randint(1, 4), columns or rng.randint(1, 4)
    return [[rng.randint(-9, 9) for _ in range(columns)] for _ in range(rows)]


def _ragged(rng: random.Random, given: list[Any]) -> list[list[int]]:
    return [_ints(rng, given)[:4] for _ in range(rng.randint(0, 5))]


def _brackets(rng: random.Random, _given: list[Any]) -> str:
    text = ""
    for _ in range(rng.randint(0, 5)):
        pair, at = rng.choice(("()", "[]", "{}")), rng.randint(0, len(text))
        text = text[:at] + pair + text[at:]
    if text and rng.random() < 0.5:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", *"()[]{}")) + text[at + 1 :]
    return text


def _polish(rng: random.Random, given: list[Any], depth: int = 3) -> list[Any]:
    if depth == 0 or rng.random() < 0.3:
        return [rng.randint(-9, 9)]
    return [*_polish(rng, given, depth - 1), *_polish(rng, given, depth - 1), rng.choice("+-*")]


def _graph(rng: random.Random, _given: list[Any]) -> dict[int, list[int]]:
    nodes, sparse = rng.randint(5, 7), rng.choice((0.15, 0.3))
    return {a: [b for b in range(nodes) if a != b and rng.random() < sparse] for a in range(nodes)}


def _undirected(rng: random.Random, given: list[Any]) -> dict[int, list[int]]:
    graph = _graph(rng, given)
    return {a: sorted({*others, *(b for b in graph if a in graph[b])}) for a, others in graph.items()}


def _weighted(rng: random.Random, given: list[Any]) -> dict[int, dict[int, int]]:
    return {a: {b: rng.randint(1, 9) for b in others} for a, others in _graph(rng, given).items()}


_DRAWN: dict[str, Callable[..., Any]] = {
    "int": lambda rng, _given, low, high: rng.randint(low, high),
    "ints": _ints,
    "some": lambda rng, given: _ints(rng, given, 1),
    "small": lambda rng, _given: [rng.randint(0, 9) for _ in range(rng.randint(0, 12))],
    "sorted": lambda rng, given: sorted(_ints(rng, given)),
    "distinct": _distinct,
    "distinct2": _shuffled,
    "member": _member,
    "word": lambda rng, given: _word(rng, given, 9, "abcde"),
    "words": _words,
    "text": _text,
    "text1": lambda rng, given: _text(rng, given, 1),
    "palindrome": _palindrome,
    "anagram": lambda rng, given: _word(rng, given, 6, "abc"),
    "prefixed": _word,
    "other": _other,
    "runs": lambda rng, _given: "".join(rng.choice("abc") * rng.randint(1, 4) for _ in range(rng.randint(0, 6))),
    "bits": lambda rng, _given: "".join(rng.choice("01") for _ in range(rng.randint(1, 9))),
    "matrix": _ragged,
    "matrix1": _matrix,
    "square": lambda rng, given, size: _matrix(rng, given, size, size),
    "brackets": _brackets,
    "polish": _polish,
    "graph": _graph,
    "undirected": _undirected,
    "weighted": _weighted,
    "perfect": lambda rng, _given: rng.choice((6, 28, 496, rng.randint(1, 500), rng.randint(1, 50))),
    "year": lambda rng, _given: rng.choice(
        (rng.randint(1600, 2400), 100 * rng.randint(16, 24), 4 * rng.randint(400, 600))
    ),
    "coins": lambda rng, _given: sorted(rng.sample(range(1, 12), rng.randint(1, 4))),
    "weights": lambda rng, _given: [rng.randint(1, 9) for _ in range(5)],
}
