"""Every template gives whole positive answers whose worked solution is true; held-out templates are others."""

import random
import re

import pytest

from lmforge.corpus.sources.interpreter import value
from lmforge.corpus.sources.wordproblems import ALGEBRA, ARITHMETIC, Template, problem, templates


@pytest.mark.parametrize("template", ARITHMETIC + ALGEBRA, ids=lambda template: template.text[:40])
def test_worked_solutions_are_true(template: Template) -> None:
    for level in range(1, 6):
        for number in range(20):
            question, working, answer = problem(template, level, random.Random(number))
            assert "{" not in question + working
            steps, said = working.split(". The answer is ")
            for step in steps.split("; "):
                left, right = step.split(" = ")
                assert value(left) == int(right) >= 0
            assert said.split()[0].rstrip(".") == answer == steps.split(" = ")[-1]
            assert int(answer) >= 1


def solved(question: str) -> int | None:
    """x of the equations that are written out, found by trying: nothing of how they were made is used."""
    if not (match := re.fullmatch(r"Solve for x: (.*)\.", question)):
        return None
    text = re.sub(r"(?<=\d)(?=[x(])", "*", match.group(1)).replace("=", "==")
    return next(x for x in range(100_000) if value(text, {"x": x}))


def test_equations_hold_for_the_answer() -> None:
    equations = [template for template in ALGEBRA if template.text.startswith("Solve")]
    assert len(equations) == 4
    for template in equations:
        for number in range(10):
            question, _, answer = problem(template, 2, random.Random(number))
            assert solved(question) == int(answer)


def test_held_out_templates_are_a_fifth_and_never_shown() -> None:
    for kind in (ARITHMETIC, ALGEBRA):
        shown, held = templates(kind, False), templates(kind, True)
        assert set(shown).isdisjoint(held)
        assert len(held) == len(kind) // 5
        assert len(shown) + len(held) == len(kind) >= 20
