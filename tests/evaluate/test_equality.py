"""Answers found and compared: as people write them, and never evaluated."""

import pytest

from lmforge.evaluate.equality import boxed, expression, final_answer, last_number, number, same, same_symbolically

SAME = [
    ("12 euros", "12"), ("$18", "18"), ("1,000", "1000"), ("1/2", "0.5"), ("\\frac{1}{2}", "\\dfrac12"),
    ("\\frac9{19}", "9/19"),
    ("2 and 5", "5 and 2"), ("x = 2 or x = 5", "5, 2"), ("(1, 2)", "(1,2.0)"), ("105^\\circ", "105"), ("-3", "−3"),
    ("\\text{Evelyn}", "Evelyn"), ("50\\%", "50"), ("2^{10}", "1024"), (" 7. ", "7"), ("14:55", "14:55"),
]  # fmt: skip
OTHER = [
    ("3", "5 and 3"), ("5 and 7", "7"), ("(1,2)", "(2,1)"), ("[1,2)", "(1,2)"), ("x", "y"), ("12", "21"), ("", "0"),
    ("2 and 2", "2 and 5"), ("1/3", "0.3333"), ("1,00", "100 and 1"), ("12 3", "123"), ("__import__('os')", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), SAME)
def test_the_same(one: str, two: str) -> None:
    assert same(one, two)
    assert same(two, one)


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_not_the_same(one: str, two: str) -> None:
    assert not same(one, two)
    assert not same(two, one)


def test_expressions_are_settled_by_algebra_within_limits() -> None:
    pytest.importorskip("sympy")
    pairs = [
        ("x(x+1)", "x^2 + x"), ("\\sqrt{8}", "2\\sqrt{2}"), ("\\frac{\\sqrt{3}}{2}", "\\sin(\\pi/3)"), 
        ("3qr - 2q", "q(3r-2)"),
        ("x^2+1", "x^2-1"), ("x", "y"), ("9^{9^{9^{9}}}", "3"), ("no idea", "3"), ("7", "7.0"),
    ]  # fmt: skip
    assert same_symbolically(pairs) == [True, True, True, True, False, False, False, False, True]


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "x.__class__", "[1,2]", "lambda: 1", "2**2000", "9**9**9", "open", "x;y", "'a'",
     "x" * 500,
     "sqrt(x, evaluate=False)", "a if b else c", "{1}"],
)  # fmt: skip
def test_what_is_no_expression_never_reaches_sympy(text: str) -> None:
    made = expression(text)
    assert made is None or set(made) <= set("openclasx*")  # words become products of letters


def test_answers_are_found_where_they_are_given() -> None:
    assert final_answer("First 5x = 20. The answer is 12 euros. Check: 3.") == "12 euros"
    assert final_answer("so 4\n#### 42\n") == "42"
    assert final_answer("hence \\boxed{\\frac{1}{2}} or 3") == "\\frac{1}{2}"
    assert final_answer("we have 3 and then $1,204.50 left") == "1204.50"
    assert final_answer("The answer is 2.5.") == "2.5"
    assert final_answer("perhaps") == "perhaps"
    assert boxed("\\boxed{a{b}c") is None
    assert last_number("none") is None
    assert number("3 metres") == 3
    assert number("3 or 4") is None
