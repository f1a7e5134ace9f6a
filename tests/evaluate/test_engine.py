"""The harness's own tasks on local packs: its prompts, its metrics, no connection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.evaluate import engine
from lmforge.evaluate.definitions import DEFINITIONS
from tests.evaluate.packs_for_tests import shared_packs

pytest.importorskip("lm_eval")
QUESTION = {
    "question": "What is 1+1?",
    "choices": {"text": ["1", "2", "3"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
TRUE = {"passage": "It rains.", "question": "does it rain?", "answer": True, "idx": 1}
SUBJECTS = [
    {"subject": subject, "question": f"{subject} {number}?", "choices": ["w", "x", "y", "z"], "answer": "C"}
    for subject in ("anatomy", "virology")
    for number in range(2)
]
SCHEMA = {
    "txt1": "The cup did not fit because",
    "pron": "it",
    "txt2": "was too big.",
    "answers": ["The cup", "The box"],
}


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shared_packs(
        tmp_path,
        {
            "arc_easy": {"test.jsonl": [QUESTION, QUESTION | {"answerKey": "A"}], "train.jsonl": [QUESTION] * 3},
            "boolq": {"validation.jsonl": [TRUE]},
            "mmlu": {"test.jsonl": SUBJECTS, "dev.jsonl": SUBJECTS},
            "winograd": {"wsc283_collection.jsonl": [SCHEMA | {"correctAnswer": "A", "idx": 0}]},
        },
    )
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    return root


class Longest:
    """Takes the longest continuation to be the likeliest."""

    rank, world_size = 0, 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(float(len(request.args[1])), False) for request in requests]


def test_documents_become_the_harness_prompts_and_its_metrics(packs: Path, tmp_path: Path) -> None:
    model, prepared = Longest(), engine.prepare(DEFINITIONS["arc_easy"], tmp_path / "t", shots=1)
    samples, figures = engine.run(prepared, model)
    assert model.asked[0][0].startswith("Question: What is 1+1?\nAnswer: 2\n\nQuestion: What is 1+1?\nAnswer:")
    assert [sample["doc"]["id"] for sample in samples] == ["0", "1"]
    assert figures["lmforge_arc_easy"]["acc,none"] == 0.5  # of three equal lengths the first is taken
    content = json.loads((tmp_path / "t" / "lmforge_arc_easy.yaml").read_text())
    assert content["include"].endswith("lm_eval/tasks/arc/arc_easy.yaml")


def test_parts_are_tasks_of_their_own(packs: Path, tmp_path: Path) -> None:
    prepared = engine.prepare(DEFINITIONS["mmlu"], tmp_path / "t", shots=2, limit=3)
    assert prepared.names == ["lmforge_mmlu_anatomy", "lmforge_mmlu_virology"]
    model = Longest()
    samples, _ = engine.run(prepared, model)
    assert [sample["doc"]["id"] for sample in samples] == [document["id"] for document in prepared.documents]
    assert len(samples) == 3
    for prompt, _ in model.asked:
        assert ("virology" in prompt) != ("anatomy" in prompt)  # description and examples are of one subject
    again = engine.prepare(DEFINITIONS["mmlu"], tmp_path / "u", shots=2, limit=3)
    assert again.data == prepared.data != engine.prepare(DEFINITIONS["mmlu"], tmp_path / "v", limit=3).data


def test_partial_and_full_scoring_of_a_schema(packs: Path, tmp_path: Path) -> None:
    partial, full = Longest(), Longest()
    engine.run(engine.prepare(DEFINITIONS["wsc273"], tmp_path / "p"), partial)
    engine.run(engine.prepare(DEFINITIONS["wsc273_full"], tmp_path / "f"), full)
    assert [context for context, _ in partial.asked] == [
        "The cup did not fit because the cup",
        "The cup did not fit because the box",
    ]
    assert {continuation.strip() for _, continuation in partial.asked} == {"was too big."}
    assert full.asked == [
        ("", "The cup did not fit because the cup was too big."),
        ("", "The cup did not fit because the box was too big."),
    ]


def test_what_is_not_there_is_said(packs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lmforge packs fetch piqa"):
        engine.prepare(DEFINITIONS["piqa"], tmp_path / "t")
    with pytest.raises(InputError, match="no split 'train'"):
        engine.prepare(DEFINITIONS["boolq"], tmp_path / "t", shots=1)
    with pytest.raises(InputError, match="no examples to learn from"):
        engine.prepare(DEFINITIONS["wsc273"], tmp_path / "t", shots=1)
