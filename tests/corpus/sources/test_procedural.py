"""Problems: reproducible, answered by their own working, proved a second time, and checked by code that wrong replies
do not pass."""

import json
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources.procedural import (
    LEVELS,
    TASKS,
    balanced,
    check,
    closing,
    document,
    make,
    proved,
    write_exercises,
)
from lmforge.corpus.sources.wordproblems import ALGEBRA, templates
from lmforge.errors import InputError
from lmforge.recipe import ProceduralTask

TASK = st.sampled_from(sorted(TASKS))
LEVEL = st.sampled_from(list(LEVELS))


def test_the_recipe_knows_every_task() -> None:
    assert set(get_args(ProceduralTask)) == set(TASKS)


@given(TASK, st.integers(0, 2**40), st.integers(0, 2**40), LEVEL, st.booleans())
@settings(max_examples=400, deadline=None)
def test_answers_check_out(task: str, seed: int, index: int, level: int, held_out: bool) -> None:
    problem = make(task, seed, index, level, held_out)
    assert problem == make(task, seed, index, level, held_out)
    assert check(problem, problem.working)
    assert check(problem, f" {problem.answer} \n")
    assert not check(problem, "")
    assert not check(problem, "what 987654321987")
    assert proved(problem) in (None, problem.answer)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_another_problems_answer_does_not_pass(task: str) -> None:
    problems = [make(task, 1, index, 3) for index in range(60)]
    assert len({problem.question for problem in problems}) > 50
    for one, other in pairwise(problems):
        assert check(one, other.working) == (one.answer == other.answer)


@pytest.mark.parametrize(
    "task",
    sorted(
        set(TASKS)
        - {
            "arithmetic_words",
            "algebra_words",
            "distinct",
            "brackets",
            "close",
            "program",
            "algebra",
            "algebra_calculator",
            "algorithm",
        }
    ),
)
def test_most_tasks_carry_a_proof(task: str) -> None:
    assert all(
        proved(make(task, 2, index, level)) == make(task, 2, index, level).answer
        for index in range(20)
        for level in LEVELS
    )


def test_levels_grow() -> None:
    for task in ("sum", "sort", "copy", "brackets"):
        lengths = [sum(len(make(task, 1, index, level).question) for index in range(50)) for level in LEVELS]
        assert lengths == sorted(lengths)
        assert lengths[-1] > lengths[0]


def test_held_out_problems_use_held_out_templates_only() -> None:
    openings = [template.text.split("{")[0] for template in templates(ALGEBRA, True)]
    questions = [make("algebra_words", 1, index, 2, held_out=True).question for index in range(60)]
    assert all(any(question.startswith(opening) for opening in openings) for question in questions)


@given(st.text(alphabet="([{<>}])", max_size=12))
def test_brackets(text: str) -> None:
    shortened, before = text, None
    while shortened != before:
        before = shortened
        for pair in ("()", "[]", "{}", "<>"):
            shortened = shortened.replace(pair, "")
    assert balanced(text) == (shortened == "")
    missing = closing(text)
    assert missing is None or balanced(text + missing)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(deadline=None)
def test_documents_mark_their_answers(index: int, problems: int) -> None:
    text, meta = document(("sort", "program", "algebra_words"), index, (1, 3), problems)
    assert (text, meta) == document(("sort", "program", "algebra_words"), index, (1, 3), problems)
    assert meta["synthetic"] == "procedural"
    assert len(meta["loss_spans"]) == problems == text.count("Question: ")
    for number, (start, end) in enumerate(meta["loss_spans"]):
        asked = make(meta["task"], 0, index * problems + number, meta["level"])
        assert text[:start].endswith("Answer:")
        assert text[start:end].strip() == asked.working
        assert text[end - 1] == "\n"


def test_exercises_are_written_as_texts_or_as_chats(tmp_path: Path) -> None:
    for chat in (False, True):
        path = tmp_path / f"{chat}.jsonl"
        assert write_exercises(path, "algebra", 10, seed=3, chat=chat)["problems"] == 10
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for index, row in enumerate(rows):
            asked = make("algebra", 3, index, 1 + index % 5)
            if chat:
                assert [turn["content"] for turn in row["messages"]] == [asked.question, asked.working]
            else:
                assert row["text"] == f"Question: {asked.question}\nAnswer: {asked.working}\n"


@pytest.mark.parametrize(("task", "count", "level"), [("sorts", 1, 0), ("sort", 0, 0), ("sort", 1, 6)])
def test_exercises_that_cannot_be_written_are_refused(task: str, count: int, level: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exercises"):
        write_exercises(tmp_path / "out.jsonl", task, count, level)
