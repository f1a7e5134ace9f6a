"""Items that stand in the training text are named, others are not."""

from __future__ import annotations

from pathlib import Path

from lmforge.corpus.build import read_documents
from lmforge.evaluate.leaked_items import leaked_items


def test_items_of_training_documents_are_found(base: Path) -> None:
    text = max((each["text"] for each in read_documents(base / "corpus", "train")), key=len)
    words = text.split()
    planted = " ".join(words[5:30])
    items = {
        "copied": ["Is it so?", planted.upper().replace(" ", ",  ")],
        "own": ["a question of zebras xylophones quasars and nothing that any training text could ever hold"],
        "half": [planted[:20] + " zzz " + planted[20:40]],
    }
    assert leaked_items(items, base / "corpus") == {"copied"}
