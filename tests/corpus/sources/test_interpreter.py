"""The interpreter says what Python says, and refuses everything that is not in its subset or beyond its bounds."""

import contextlib
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.sources.interpreter import DEPTH, Refused, run, value
from lmforge.corpus.sources.programs import program


def test_agrees_with_python_on_generated_programs() -> None:
    made = [program(random.Random(number), 1 + number % 5) for number in range(300)]
    mark = "print('----')\n"
    whole = subprocess.run(
        [sys.executable, "-I", "-c", mark.join(text for text, _ in made)], capture_output=True, text=True, check=True
    )
    assert [printed for _, printed in made] == whole.stdout.split("----\n")
    assert len({text for text, _ in made}) > 250


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "open('x')",
        "print(().__class__)",
        "x = [1, 2].sort()",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        ("lambda: 1"),
        "print(1.5)",
        "f'{1}'",
        "{1: 2}",
        "def f(x=1):\n    return x",
        "class A:\n    pass",
        "print('%s' % 'x')",
        "global x",
        "x = y",
        ("del x"),
        "with x:\n    pass",
        "try:\n    pass\nfinally:\n    pass",
        "[[1]]",
        "x = [1]\nx.append(x)",
        "return 1",
        "break",
        "print(7 / 2)",
        ("1 / 0"),
        "[1][5]",
        "int('x')",
        "x = 1\nx()",
        "print(*[1])",
        "min(1, 'a')",
        "a b",
        "\x00",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(Refused, match="program"):
        run(text)


@pytest.mark.parametrize(
    "text",
    [
        "while True:\n    pass",
        "x = 2\nfor i in range(9999):\n    x = x * x",
        "x = 2 ** 10000",
        "x = 'ab' * 10 ** 9",
        ("x = [0] * 99999"),
        "for i in range(10 ** 9):\n    pass",
        "def f(n):\n    return f(n + 1)\nf(0)",
        "for i in range(9999):\n    print('x' * 99)",
        "x = [0] * 9999\nfor i in range(9999):\n    y = sorted(x)",
        "(" * 500 + "1" + ")" * 500,
        "x = " + "-" * 9000 + "1",
        "1\n" * 6000,
    ],
)
def test_bounds_hold(text: str) -> None:
    with pytest.raises(Refused):
        run(text)


def test_nesting_up_to_the_bound_is_fine() -> None:
    assert (
        run(f"def f(n):\n    if n < 2:\n        return n\n    return 1 + f(n - 1)\nprint(f({DEPTH - 1}))")
        == f"{DEPTH - 1}\n"
    )


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(0, 9))
def test_expressions(a: int, b: int, c: int) -> None:
    expected = [(a + b) * c - a, a // b, a % b, b**c, a < b <= c, not a]
    assert value("[(a + b) * c - a, a // b, a % b, b ** c, a < b <= c, not a]", {"a": a, "b": b, "c": c}) == expected


@given(st.text(max_size=60))
def test_any_text_ends_in_output_or_a_refusal(text: str) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(run(text, steps=500), str)
