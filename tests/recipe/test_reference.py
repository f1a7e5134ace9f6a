"""docs/reference/recipe.md is what the schema says, and the schema says something of every key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from annotated_types import Ge
from pydantic import Field

from lmforge.recipe.reference import (
    comments_beside,
    default_in_words,
    meanings,
    page,
    sections_below,
    table,
    type_in_words,
)
from lmforge.recipe.schema import Recipe
from lmforge.recipe.types import Positive, Section, Share, Size

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"
SECTIONS = {"": Recipe} | dict(sections_below(Recipe, ""))


class Example(Section):
    """Of everything that the page can show."""

    bare: int = 3
    # above the field,
    # on two lines
    above: Share = 0.5
    beside: Literal["a", "b"] = "a"  # on its line
    derived: Size | None = None  # room; default: half of what is free
    many: tuple[tuple[Share, Positive], ...] = ()  # pairs


class Heir(Example):
    """With a field of its parent, and one of its own."""

    bare: int = 4  # said at last
    own: bool = False  # its own


def test_the_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/reference/recipe.md differs; run: make docs"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_has_a_meaning(heading: str) -> None:
    known = meanings(SECTIONS[heading])
    fields = [name for name in SECTIONS[heading].model_fields if heading or name in ("name", "seed", "run_dir")]
    assert not [name for name in fields if not known.get(name)], "say beside the field what the key means"


def test_comments_stand_above_or_beside() -> None:
    assert comments_beside(Example) == {
        "bare": "",
        "above": "above the field, on two lines",
        "beside": "on its line",
        "derived": "room; default: half of what is free",
        "many": "pairs",
    }
    assert meanings(Heir) == comments_beside(Example) | {"bare": "said at last", "own": "its own"}


def test_types_and_defaults_are_in_words() -> None:
    rows = table(Example, "example.").splitlines()[2:]
    assert rows == [
        "| `bare` | integer | `3` | |",
        "| `above` | number from 0 to 1 | `0.5` | above the field, on two lines |",
        '| `beside` | `"a"`, `"b"` | `"a"` | on its line |',
        '| `derived` | bytes, or a text such as `"2GiB"` | half of what is free | room |',
        "| `many` | list of: [number from 0 to 1, integer above 0] | none | pairs |",
    ]
    assert type_in_words(dict[str, int], [Ge(0)], "") == "table: text → integer"
    assert default_in_words(Field(default=...), "x") == ("required", "x")


def test_registered_parts_are_there() -> None:
    assert '[[compress.steps]] method = "quantize"' in SECTIONS
    assert '[[evaluate.tasks]] name = "passkey"' in SECTIONS
    assert "[corpus.slurm]" in SECTIONS
