"""Algebra: every problem's answer follows from its question by another way, and what is held out is other text."""

import difflib
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources.algebra import GRADES, GRADES_OF_LEVEL, AlgebraProblem, divisions, kinds, made, sentences
from lmforge.corpus.sources.interpreter import value

CALL = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
NEAREST = 0.89
KIND = st.sampled_from([kind.name for kind in kinds()])

# what must hold between a problem's numbers and its answer x (of two, the larger is x and the smaller y)
RELATIONS = {
    "purchase": "x == a * b + c",
    "rest": "x == c - a * b",
    "distance": "x == v * t",
    "time": "x * v == d",
    "percent": "100 * x == q * n",
    "ratio": "x * (a + b) == a * s",
    "average": "3 * x == a + b + c",
    "linear": "a * x + b == c",
    "linear_minus": "a * x - b == c",
    "brackets": "a * (x + b) == c",
    "both_sides": "a * x + b == d * x + c",
    "consecutive": "3 * x == c",
    "sum_difference": "2 * x == c + b",
    "tickets": "b * x + a * (n - x) == c",
    "quadratic": "x * x - s * x + m == 0 and y * y - s * y + m == 0 and x > y",
    "square_product": "x * (x + k) == m and x > 0",
    "meeting": "x * (u + v) == d",
    "catching_up": "x * (v - u) == d",
    "mixture": "x * (a + b) == a * p + b * r0",
    "arithmetic_term": "x == a + d * (n - 1)",
    "arithmetic_sum": "2 * x == n * (2 * a + d * (n - 1))",
    "geometric_term": "x == a * q ** (n - 1)",
    "growth": "x == a * q ** (t // h)",
    "exponent": "b ** x == m",
    "logarithm": "b ** x == m",
    "log_equation": "b ** n == x + a",
    "log_sum": "b ** x == a * c",
}


def read_back(wording: str, question: str) -> dict[str, int]:
    """The numbers that a question says, found by its template."""
    pattern = re.escape(" ".join(wording.split()))
    seen: set[str] = set()

    def gap(name: re.Match[str]) -> str:
        if name[1] in seen:
            return rf"(?P={name[1]})"
        seen.add(name[1])
        return rf"(?P<{name[1]}>\w+?)"

    pattern = re.sub(r"\\\{(\w+)\\\}", gap, pattern).replace(r"\ ", r"\s*")
    found = re.fullmatch(pattern, question)
    assert found, (wording, question)
    return {name: int(text) for name, text in found.groupdict().items() if text.isdigit()}


@given(KIND, st.integers(0, 2**40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_answer_solves_what_the_question_says(name: str, seed: int, held_out: bool) -> None:
    problem = made(random.Random(seed), held_out, kind=name)
    assert problem == made(random.Random(seed), held_out, kind=name)
    numbers = read_back(problem.wording, problem.question)
    answers = sorted(map(int, problem.answer.split(" and ")))
    numbers |= {"x": answers[-1], "y": answers[0]}
    assert value(RELATIONS[name], numbers), problem
    assert problem.working.endswith(f"The answer is {problem.answer}.")
    for expression, result in CALL.findall(problem.working):
        assert Fraction(value(expression.strip())) == int(result)


def test_every_number_of_a_call_is_in_the_question_or_worked_out_before() -> None:
    """A working that used a number nobody told would teach to guess."""
    rng = random.Random(1)
    for kind in kinds():
        for _ in range(20):
            problem = made(rng, kind=kind.name)
            known = set(re.findall(r"\d+", problem.question)) | {"1", "2", "3", "4", "5", "20"}
            for part in re.split(r"(?=<<)", problem.working):
                call = CALL.match(part)
                if call:
                    assert set(re.findall(r"\d+", call[1])) <= known, (problem.question, problem.working)
                known |= set(re.findall(r"\d+", part))


def test_a_logarithm_is_divided_out() -> None:
    assert divisions(27, 3) == ("1: << 27 / 3 = 9>>, 2: << 9 / 3 = 3>>, 3: << 3 / 3 = 1>>", 3)
    assert divisions(1, 7) == ("", 0)
    for large, base in ((12, 5), (0, 3), (8, 1)):
        with pytest.raises(ValueError, match="no power"):
            divisions(large, base)


def test_held_out_templates_are_other_text() -> None:
    assert set(RELATIONS) == {kind.name for kind in kinds()}
    train = {template for kind in kinds() for template in kind.train}
    held_out = {template for kind in kinds() for template in kind.held_out}
    assert not train & held_out
    assert all(len(kind.train) >= 6 and len(kind.held_out) >= 2 for kind in kinds())
    rng = random.Random(2)
    wordings = [
        {_wording(made(rng, held, kind=kind.name)) for kind in kinds() for _ in range(60)} for held in (False, True)
    ]
    assert not wordings[0] & wordings[1]


def test_held_out_templates_are_no_near_copies() -> None:
    """difflib's ratio of a held-out template's words (gaps are words) and any training template's of its kind, whatever
    is chosen in that, stays below NEAREST: 1 would be the same words in the same order."""
    for kind in kinds():
        rng = random.Random(kind.name)
        held_out = [_words(template) for template in kind.held_out]
        for template in kind.train:
            for _ in range(6):
                chosen = _words(sentences(template, rng))
                alike = max(difflib.SequenceMatcher(None, each, chosen, autojunk=False).ratio() for each in held_out)
                assert alike < NEAREST, (template, kind.held_out)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\{\w+\}|[^\s\w]", text.lower())


def _wording(problem: AlgebraProblem) -> str:
    return re.sub(r"\d+|[A-Z]\w+", "_", problem.question)


def test_grades_are_kept_apart() -> None:
    for grades in GRADES_OF_LEVEL.values():
        found = {made(random.Random(n), grades=grades).grade for n in range(60)}
        assert found <= set(range(grades[0], grades[1] + 1))
    assert (min(kind.grade for kind in kinds()), max(kind.grade for kind in kinds())) == GRADES
    with pytest.raises(ValueError, match="no kind"):
        made(random.Random(0), grades=(1, 3))
