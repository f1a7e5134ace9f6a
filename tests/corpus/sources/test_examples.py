"""Examples: what is read from a file or folder of any kind."""

import json
from pathlib import Path

import pytest

from lmforge.corpus.sources.examples import examples_of, texts_at
from lmforge.errors import InputError


def test_kinds_are_told_from_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("one")
    (tmp_path / "a" / "y.txt").write_text("  ")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.jsonl").write_text(json.dumps({"text": "two"}))
    assert [*texts_at(tmp_path / "a"), *texts_at(tmp_path / "b"), *texts_at(tmp_path / "b" / "x.jsonl")] == [
        "one",
        "two",
        "two",
    ]
    assert examples_of(tmp_path / "b" / "x.parquet").kind == "parquet"
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="holds no texts to learn from"):
        examples_of(tmp_path / "c")
    with pytest.raises(InputError, match="does not exist"):
        list(texts_at(tmp_path / "gone.txt"))
