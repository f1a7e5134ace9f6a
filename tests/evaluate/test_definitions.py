"""Every definition names a file of the harness, a known pack, and makes documents of its rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lmforge.evaluate.definitions import DEFINITIONS, FAMILIES, schema
from lmforge.evaluate.packs import known_packs


def test_packs_and_families_are_known() -> None:
    assert set(FAMILIES) == set(DEFINITIONS)
    assert {each.pack for each in DEFINITIONS.values()} <= set(known_packs())
    assert {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"} <= set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_harness_has_its_file(name: str) -> None:
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        pytest.skip("lm_eval is not installed")
    if DEFINITIONS[name].file:
        assert (Path(found.origin).parent / "tasks" / DEFINITIONS[name].file.format(part="anatomy")).is_file()


def test_labels_of_names_numbers_and_tests() -> None:
    rte = DEFINITIONS["rte"].make
    row = {"sentence1": "a", "sentence2": "b"}
    assert [rte(row | {"label": label}) for label in ("not_entailment", 0, None, -1)] == [
        row | {"label": 1}, row | {"label": 0}, None, None
    ]  # fmt: skip
    assert DEFINITIONS["hellaswag"].make({"ctx": "Mop: A man", "endings": ["a"], "label": 2})["ctx_a"] == "A man"


def test_a_schema_joins_its_parts() -> None:
    own = schema(
        {"txt1": "Ann met Eve,", "pron": "her", "txt2": ".", "answers": ["Ann ", "Eve"], "correctAnswer": "B."}
    )
    assert own["text"] == "Ann met Eve, her."
    assert own["text"][own["pronoun_loc"] :].startswith("her")
    assert (own["options"], own["label"]) == (["Ann", "Eve"], 1)
