"""Programs scored: a model that writes solutions passes, one that writes other programs does not, and why is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from lmforge.corpus.sources.algorithms import algorithms
from lmforge.evaluate.packs import Row
from lmforge.evaluate.task import TASKS, Context
from lmforge.evaluate.tasks import programs as module
from lmforge.evaluate.tasks.programs import AlgorithmSettings, ProgramSettings, algorithm_fault
from tests.evaluate.conftest import score_of, tiny_model

HUMANEVAL: list[Row] = [
    {"task_id": "T/0", "prompt": "def add(a, b):\n", "canonical_solution": "    return a + b\n", "entry_point": "add",
     "test": "def check(candidate):\n    assert candidate(1, 2) == 3"},
    {"task_id": "T/1", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "entry_point": "one",
     "test": "def check(candidate):\n    assert candidate() == 1"},
]  # fmt: skip
MBPP: list[Row] = [
    {"task_id": n, "text": f"Write a function to add {n}.", "code": f"def add(x):\n    return x + {n}",
     "test_setup_code": "", "test_list": [f"assert add(1) == {n + 1}"]}
    for n in (2, 3, 4, 11)
]  # fmt: skip


@pytest.fixture
def context(context_of: Callable[..., Context]) -> Context:
    return context_of(tiny_model())


def writes(monkeypatch: pytest.MonkeyPatch, texts: Callable[[int], list[str]]) -> None:
    monkeypatch.setattr(module, "write", lambda context, prompts, how, title: [texts(n) for n in range(len(prompts))])


def test_solutions_pass_and_others_say_why(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = module._phrased(AlgorithmSettings(name="algorithms", limit=4))
    right, wrong = [each.solution for each in asked], f"def {asked[1].name}(*given):\n    return 'wrong'"
    writes(monkeypatch, lambda n: [wrong if n == 1 else f"Sure:\n```python\n{right[n]}\n```"])
    score = score_of("algorithms", context, limit=4)
    assert (score.value, score.items) == (0.75, 4)
    assert [row["passed"] for row in score.rows] == [1, 0, 1, 1]
    assert "'wrong', not" in score.rows[1]["why"]
    assert sum(part["items"] for part in score.extra["parts"].values()) == 4
    assert score.extra["isolation"]
    assert TASKS["algorithms"].headline({"value": score.value, "items": 4}) == "algorithms 75% (4 tasks)"


def test_an_algorithm_that_is_named_has_to_be_it() -> None:
    bubble, merge = algorithms()["bubble_sort"], algorithms()["merge_sort"]
    assert algorithm_fault(bubble, bubble.reference("f"), "f") == ""
    assert algorithm_fault(bubble, merge.reference("f"), "f")
    assert "sorted" in algorithm_fault(bubble, "def f(items):\n    return sorted(items)", "f")
    assert algorithm_fault(bubble, "def g(items):\n    return sorted(items)", "f").startswith("f([")


def test_held_out_phrasings_are_asked_unless_others_are_wanted() -> None:
    held_out = module._phrased(AlgorithmSettings(name="algorithms"))
    assert len(held_out) == sum(len(each.held_out) for each in algorithms().values())
    assert all(each.phrasing in each.algorithm.held_out for each in held_out)
    some = module._phrased(AlgorithmSettings(name="algorithms", families=("sorting",), held_out=False))
    assert {each.algorithm.family for each in some} == {"sorting"}
    assert all(each.phrasing in each.algorithm.train for each in some)


def test_humaneval_and_mbpp_run_their_own_tests(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "open_pack",
        lambda pack, split: HUMANEVAL if pack == "humaneval" else MBPP[(split == "test" and 3) or 0 :],
    )
    monkeypatch.setattr(module, "find_pack", lambda pack: type("Pack", (), {"version": "1"}))
    writes(monkeypatch, lambda n: [HUMANEVAL[n]["canonical_solution"], "    return 0\n"])
    score = score_of("humaneval", context, samples=2, k=[1, 2])
    assert score.value == 0.5
    assert score.extra["pass_at_k"]["2"]["value"] == 1.0
    assert TASKS["humaneval"].beside(score.extra)["pass@2"] == 1.0
    writes(monkeypatch, lambda n: [MBPP[3]["code"] + "\n"])
    score = score_of("mbpp", context)
    assert (score.value, score.items) == (1.0, 1)
    prompt = score.rows[0]["prompt"]
    assert prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3
    assert prompt.endswith("assert add(1) == 12\n[BEGIN]\n")
    texts = list(TASKS["mbpp"].texts(ProgramSettings(name="mbpp")))
    assert MBPP[3]["code"] in texts


def test_k_fits_the_samples() -> None:
    with pytest.raises(ValidationError, match="raise samples or lower k"):
        ProgramSettings(name="humaneval", samples=2, k=(3,))


def test_settings_come_from_a_recipe(context: Context) -> None:
    given: dict[str, Any] = {"name": "algorithms", "families": ["sorting"], "samples": 5, "k": [1, 5]}
    assert TASKS["algorithms"].settings.model_validate(given).k == (1, 5)
