"""Small generated programs, whose output our own interpreter works out."""

from __future__ import annotations

import random
from collections.abc import Callable

from lmforge.corpus.sources.interpreter import run

VARIABLES = ("a", "b", "c", "n", "x", "y", "z", "total", "count", "value", "result", "current")
FUNCTIONS = ("f", "g", "step", "twice", "change", "combine", "measure")
WORDS = (
    "anvil",
    "ember",
    "forge",
    "hammer",
    "iron",
    "letter",
    "meadow",
    "orange",
    "river",
    "silver",
    "summer",
    "window",
    "yellow",
    "zebra",
)


def program(rng: random.Random, level: int) -> tuple[str, str]:
    """(program, what it prints); `level` 1 to 5 sets the size of its numbers and loops."""
    text = rng.choice(SHAPES)(rng, level)
    return text, run(text)


def _number(rng: random.Random, level: int, least: int = 1) -> int:
    return least + rng.randrange(5 * 2**level)


def _numbers(rng: random.Random, level: int) -> list[int]:
    return [_number(rng, level) for _ in range(3 + rng.randrange(2 * level + 1))]


def _straight(rng: random.Random, level: int) -> str:
    names = rng.sample(VARIABLES, 3)
    lines = [f"{name} = {_number(rng, level)}" for name in names]
    for _ in range(1 + level):
        target, left, right = (rng.choice(names) for _ in range(3))
        lines.append(f"{target} = {left} {rng.choice('+-*')} {rng.choice((right, str(_number(rng, 1))))}")
    return "\n".join([*lines, f"print({', '.join(names)})"]) + "\n"


def _branch(rng: random.Random, level: int) -> str:
    one, two = rng.sample(VARIABLES, 2)
    return (
        f"{one} = {_number(rng, level)}\n{two} = {_number(rng, level)}\nif {one} "
        f"{rng.choice(('<', '>', '<=', '>=', '=='))} {two}:\n"
        f"    print({one} {rng.choice('+*')} {_number(rng, 1)})\nelse:\n    print({two} - {one})\n"
    )


def _accumulate(rng: random.Random, level: int) -> str:
    total, item = rng.sample(VARIABLES, 2)
    return (
        f"{total} = {_number(rng, level)}\nfor {item} in range({_number(rng, 1)}, {_number(rng, 1, 11)}):\n"
        f"    if {item} % {2 + rng.randrange(3)} == {rng.randrange(2)}:\n        {total} {rng.choice('+-')}= "
        f"{item}\nprint({total})\n"
    )


def _search(rng: random.Random, level: int) -> str:
    current, count = rng.sample(VARIABLES, 2)
    return (
        f"{current} = {_number(rng, level, 20)}\n{count} = 0\nwhile {current} > {1 + rng.randrange(4)}:\n"
        f"    {current} = {current} // {2 + rng.randrange(2)}\n    {count} += 1\nprint({current}, {count})\n"
    )


def _collect(rng: random.Random, level: int) -> str:
    items, item = rng.sample(VARIABLES, 2)
    test = rng.choice((f"{item} % 2 == 0", f"{item} > {_number(rng, level)}", f"{item} % 3 != 1"))
    return (
        f"{items} = {_numbers(rng, level)}\n{items} = [{item} {rng.choice('+*')} {_number(rng, 1)} for {item} in "
        f"{items} if {test}]\n"
        f"print({items})\nprint({rng.choice(('len', 'sum'))}({items}))\n"
    )


def _function(rng: random.Random, level: int) -> str:
    name, (one, two) = rng.choice(FUNCTIONS), rng.sample(VARIABLES, 2)
    body = rng.choice(
        (
            f"{one} * {_number(rng, 1)} + {two}",
            f"{two} if {one} > {two} else {one}",
            f"({one} + {two}) % {_number(rng, 1, 2)}",
        )
    )
    return (
        f"def {name}({one}, {two}):\n    return {body}\n\nprint({name}({_number(rng, level)}, {_number(rng, level)}))\n"
        f"print({name}({name}({_number(rng, 1)}, {_number(rng, 1)}), {_number(rng, 1)}))\n"
    )


def _recursion(rng: random.Random, level: int) -> str:
    name, one = rng.choice(FUNCTIONS), rng.choice(VARIABLES)
    rest = rng.choice(
        (
            f"{one} + {name}({one} - 1)",
            f"{1 + rng.randrange(3)} * {name}({one} - 1) + 1",
            f"{name}({one} - 1) + {name}({one} - 2)",
        )
    )
    return (
        f"def {name}({one}):\n    if {one} < 2:\n        return {one}\n    return "
        f"{rest}\n\nprint({name}({2 + rng.randrange(2 + level)}))\n"
    )


def _text(rng: random.Random, level: int) -> str:
    word, letter = rng.sample(VARIABLES, 2)
    line = rng.choice(
        (
            f"print({word}[::-1])",
            f"print({word}[{rng.randrange(3)}:{3 + rng.randrange(3)}])",
            f"print({word} * {2 + rng.randrange(level + 1)})",
            f"print(len({word}) * {_number(rng, level)})",
            f"print([{letter} for {letter} in {word} if {letter} in 'aeiou'])",
        )
    )
    return f"{word} = '{rng.choice(WORDS)}'\n{line}\n"


def _bubble(rng: random.Random, level: int) -> str:
    items, one, two = rng.sample(VARIABLES, 3)
    return (
        f"{items} = {_numbers(rng, level)}\nfor {one} in range({1 + rng.randrange(2)}):\n    for {two} in "
        f"range(len({items}) - 1):\n"
        f"        if {items}[{two}] {rng.choice('<>')} {items}[{two} + 1]:\n"
        f"            {items}[{two}], {items}[{two} + 1] = {items}[{two} + 1], {items}[{two}]\nprint({items})\n"
    )


SHAPES: tuple[Callable[[random.Random, int], str], ...] = (
    _straight, _branch, _accumulate, _search, _collect, _function, _recursion, _text, _bubble,
)  # fmt: skip
