"""Every key of a recipe says what is made or how; and what the stages' keys hold is just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmforge.pipeline import STAGES
from lmforge.pipeline.keys import (
    BY_CONTENT,
    CHOICE,
    HOW,
    HOW_SECTIONS,
    LENGTH,
    WHAT,
    differences,
    in_words,
    what_of,
    without_how,
)
from lmforge.recipe import Finetune, Recipe, Train
from lmforge.recipe.types import Section

SECTIONS: dict[str, type[Section]] = {
    name: field.annotation if isinstance(field.annotation, type) else Finetune
    for name, field in Recipe.model_fields.items()
    if name == "finetune" or (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
}
KEYS = [
    *(("", key) for key in Recipe.model_fields if key not in SECTIONS),
    *((name, key) for name, section in SECTIONS.items() for key in section.model_fields),
]


def classes_of(section: str, key: str) -> list[str]:
    tables: dict[str, dict[str, Any]] = {
        "how": HOW,
        "what": WHAT,
        "by content": BY_CONTENT,
        "choice": CHOICE,
        "length": LENGTH,
    }
    by_key = [name for name, table in tables.items() if key in table.get(section, ())]
    return [*by_key, *(["how"] if section in HOW_SECTIONS else [])]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_is_classified_once(section: str, key: str) -> None:
    assert len(classes_of(section, key)) == 1, f"enter {section}.{key} in src/lmforge/pipeline/keys.py"


def test_no_key_is_classified_that_is_none() -> None:
    for table in (HOW, WHAT, BY_CONTENT, CHOICE, LENGTH):
        for section, keys in table.items():
            assert {(section, key) for key in keys} <= {*KEYS}


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_the_stages_keys_hold_what_is_made_and_nothing_else(fine_tuned: bool) -> None:
    base = Finetune(base=Path("b"), task="chat", train=Path("t")) if fine_tuned else None
    recipe = Recipe(finetune=base)
    held = [stage.part(recipe) for stage in STAGES]
    for section, key in KEYS:
        kind, *_ = classes_of(section, key)
        given = getattr(getattr(recipe, section) if section else recipe, key, None)
        in_key = any(key in (part.get(section, {}) if section else part) for part in held)
        if (section, key) in (("tokens", "packing"), ("tokens", "context")):
            in_key = any(key in part for part in held)  # of the training and of examples, not of the shards
        if kind in ("how", "by content"):
            assert not in_key, f"{section}.{key}"
        elif given is not None:
            assert in_key, f"{section}.{key}"


def test_a_key_that_nobody_has_entered_counts_as_what() -> None:
    assert set(what_of("unknown", Train())) == set(Train().model_dump(mode="json", exclude_none=True))


def test_differences_are_named() -> None:
    old = {"train": {"steps": 5, "clip": 1.0}, "seed": 1, "gone": 2}
    new = {"train": {"steps": 6, "clip": 1.0, "warmup": 3}, "seed": 1}
    assert differences(old, new) == {"train.steps": (5, 6), "train.warmup": (None, 3), "gone": (2, None)}
    assert in_words(differences(old, new), most=2) == "train.steps 5 → 6, train.warmup unset → 3 and 1 more"
    assert differences(old, old) == {}


def test_a_record_of_an_older_version_loses_the_keys_that_say_how() -> None:
    assert without_how({"train": {"keep": 2, "clip": 1.0}, "seed": 1}) == {"train": {"clip": 1.0}, "seed": 1}
