"""A calculator that is exact, and deaf to anything but arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.evaluate.calculator import calculate, completed, shown

EXPRESSION = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"
    ),
    max_leaves=6,
)


@given(EXPRESSION)
def test_whole_numbers_are_as_pythons(expression: str) -> None:
    assert calculate(expression) == eval(expression)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1/3+1/6", "1/2"), ("2^10", "1024"), ("2**-1", "1/2"), ("7//2", "3"), ("7%4", "3"), ("20%*50", "10"),
        ("$1,250*2", "2500"), ("0.1+0.2", "3/10"), ("3×4÷6", "2"), ("007+1", "8"), ("-(2-5)", "3"), ("50%", "1/2"),
    ],
)  # fmt: skip
def test_how_people_write(expression: str, result: str) -> None:
    assert calculate(expression) == Fraction(result)


@pytest.mark.parametrize(
    "expression",
    ["", "x", "1/0", "9**9**9", "2**201", "0**-1", "__import__('os')", "[1]*10**9", "1 if 1 else 2", "'a'*3", "1e999",
     "1_", "(" * 300,
     "True+1", "10**59*10", "2**0.5"],
)  # fmt: skip
def test_all_else_is_refused(expression: str) -> None:
    assert calculate(expression) is None


def test_calls_are_completed_where_they_are_open() -> None:
    assert completed("She has 3 * 4 = <<3*4=") == "12"
    assert completed("<<10/4=") == "2.5"
    assert completed("<<1/3=") == "0.3333333333"
    assert completed("<< 7 * 2 =") == " 14"
    for text in ("<<3*4", "<<3*4=12>>", "3*4=", "<<x*4=", "<<=", "<<1=2="):
        assert completed(text) is None
    assert shown(Fraction(-7)) == "-7"
