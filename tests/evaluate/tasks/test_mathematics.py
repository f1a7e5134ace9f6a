"""Mathematics scored: a model that writes the worked answers has all right, and every pack's rows are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmforge.corpus.sources.algebra import kinds
from lmforge.errors import InputError
from lmforge.evaluate.equality import same
from lmforge.evaluate.packs import Row, find_pack
from lmforge.evaluate.task import TASKS, Context
from lmforge.evaluate.tasks import mathematics as module
from lmforge.evaluate.writing import Writing
from tests.evaluate.conftest import score_of, tiny_model

PACKS = ("gsm8k", "svamp", "asdiv", "mawps", "math_algebra", "aqua")
ROWS: dict[str, list[Row]] = {
    "gsm8k": [{"question": f"{n} and 1?", "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
              for n in range(9)],
"svamp": [{"ID": f"s{n}", "Body": f"Ben has {n}", "Question": "How many?", "Answer": float(n),
               "Equation": f"( {n}.0 + 0.0 )", "Type": "Addition"} for n in range(9)],
    "asdiv": [{"ID": f"a{n}", "Grade": str(1 + n % 3), "Body": "Ann.", "Question": f"How many are {n}?",
               "Answer": f"{n} (apples)", "Formula": f"{n}+0={n}"} for n in range(9)],
    "mawps": [{"text": f"{n} ?", "Answer": f"{n}.0"} for n in range(9)],
    "math": [{"context": f"What is $x+{n}$?", "answer": f"x+{n}", "chain_of_thought": f"It is $\\boxed{{x+{n}}}$.",
              "category": "algebra" if n % 2 else "geometry"} for n in range(12)],
    "aqua": [{"question": f"{n}?", "options": ["A)1", "B)2", "C)3"], "rationale": "Think.", "correct": "ABC"[n % 3]}
             for n in range(9)],
}  # fmt: skip


@pytest.fixture
def context(context_of: Callable[..., Context]) -> Context:
    return context_of(tiny_model())


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_pack", lambda pack, split: ROWS[pack])
    monkeypatch.setattr(module, "find_pack", lambda pack: type("Pack", (), {"version": "1"}))


class Scribe:
    """Writes what a task's problems have as their worked answers; keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, context: Context, texts: list[str]) -> None:
        self.prompts: list[str] = []
        self.how = Writing()

        def write(_: Context, prompts: list[list[int]], how: Writing, __: str) -> list[list[str]]:
            self.prompts, self.how = [context.tokenizer.decode(prompt) for prompt in prompts], how
            return [[text] for text in texts]

        monkeypatch.setattr(module, "write", write)


def worked(task: str, **settings: Any) -> list[module.MathProblem]:
    own: Any = TASKS[task]
    return own.problems(own.settings(name=task, **settings))[0]  # type: ignore[no-any-return]


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize("task", PACKS)
def test_worked_answers_are_right_and_others_are_not(
    task: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = worked(task)
    scribe = Scribe(monkeypatch, context, [problems[0].worked, *["The answer is 987."] * (len(problems) - 1)])
    score = score_of(task, context)
    assert [row["correct"] for row in score.rows] == [True, *[False] * (len(problems) - 1)]
    assert all("Question: " in prompt and prompt.endswith("\nAnswer:") for prompt in scribe.prompts)
    assert "<<" not in scribe.prompts[0]
    assert (
        not any(
            problem.question in prompt.rpartition("Question:")[0]
            for problem, prompt in zip(problems, scribe.prompts, strict=True)
        )
        or task == "gsm8k"
    )
    assert not scribe.how.calculator
    assert list(TASKS[task].texts(TASKS[task].settings(name=task)))


@pytest.mark.usefixtures("packs")
def test_shots_and_the_calculator_are_shown_as_asked(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = worked("gsm8k", limit=3)
    scribe = Scribe(monkeypatch, context, [each.worked for each in problems])
    score = score_of("gsm8k", context, limit=3, shots=2, calculator=True)
    assert score.value == 1.0
    assert [prompt.count("Question:") for prompt in scribe.prompts] == [3, 3, 3]
    assert "<<" in scribe.prompts[0]
    assert scribe.how.calculator
    assert score.comparison_key["shots"] == 2
    other = score_of("gsm8k", context, limit=3, shots=0)
    assert other.comparison_key["prompts"] != score.comparison_key["prompts"]


def test_algebra_asks_every_kind_from_held_out_templates(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = worked("algebra")
    assert len(problems) > 18 * len(kinds())
    scribe = Scribe(monkeypatch, context, [each.worked if "4" in each.part else "so 5" for each in problems])
    score = score_of("algebra", context)
    parts = score.extra["parts"]
    assert list(parts) == [f"grade {grade}" for grade in range(4, 13)]
    assert parts["grade 4"]["value"] == 1.0
    assert parts["grade 9"]["value"] < 0.3
    assert scribe.prompts[0].count("Question:") == 1
    assert {each.part for each in worked("algebra", grades=(7, 8))} == {"grade 7", "grade 8"}
    task = TASKS["algebra"]
    assert task.maps("model", {"parts": parts})[0].rows[0] == ("grade 4", [1.0])
    assert task.headline({"value": 0.5, "items": 7}) == "algebra 50% (7 problems)"


@pytest.mark.parametrize("task", PACKS)
def test_the_packs_own_answers_are_read(task: str) -> None:
    try:
        find_pack(TASKS[task].pack)  # type: ignore[attr-defined]
    except InputError as error:
        pytest.skip(str(error))
    problems = worked(task, limit=40)
    right = [same(TASKS[task].answer_in(each.worked), each.answer) for each in problems]  # type: ignore[attr-defined]
    assert sum(right) >= 0.9 * len(problems) > 30
