"""What sources share: the document's fields, and damage refused or skipped as the recipe says."""

from collections import Counter
from pathlib import Path

import pytest

from lmforge.corpus.sources.document import Reading, source_name
from lmforge.errors import InputError
from lmforge.recipe import Source


def test_a_document_carries_its_source_and_genre() -> None:
    reading = Reading(Source(kind="folder", path=Path("/some/where/books"), genre="books"), Counter())
    assert reading.document("a", "text") == {
        "id": "a",
        "text": "text",
        "source": "folder:books",
        "genre": "books",
        "meta": {},
    }
    assert reading.document("a", "text", "code", {"k": 1})["genre"] == "code"
    assert source_name(Source(kind="python-library")) == "python-library"


def test_damage_is_refused_or_counted() -> None:
    with pytest.raises(InputError, match="broken; mend it"):
        Reading(Source(kind="jsonl", path=Path("x")), Counter()).damaged("broken line", InputError("broken; mend it"))
    skipping = Reading(Source(kind="jsonl", path=Path("x"), damaged="skip"), Counter())
    skipping.damaged("broken line", InputError("broken; mend it"))
    assert skipping.notices == {"skipped: broken line": 1}
