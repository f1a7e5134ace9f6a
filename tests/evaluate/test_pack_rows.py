"""A benchmark of the Hub becomes a pack: rows in this program's form, with a manifest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmforge.errors import LmforgeError
from lmforge.evaluate.pack_rows import MAKERS, fetch
from lmforge.evaluate.packs import known_packs, open_pack


class Split(list[dict[str, Any]]):
    """What `datasets.load_dataset` gives."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
        super().__init__(rows)
        self.features = {"label": SimpleNamespace(names=names)} if names else {}


def test_a_fetched_pack_has_splits_rows_licence_and_checksums(tmp_path: Path) -> None:
    asked = []

    def load(hub: str, config: str | None, split: str) -> Split:
        asked.append((hub, config, split))
        row = {"sentence1": "a", "sentence2": "b", "label": -1 if split == "test" else 1, "idx": 0}
        return Split([row], ["entailment", "not_entailment"])

    pack = fetch("glue/rte", tmp_path, load)
    assert asked == [("nyu-mll/glue", "rte", split) for split in ("train", "validation", "test")]
    assert pack.licence == known_packs()["glue/rte"].licence
    assert pack.source == "huggingface.co/datasets/nyu-mll/glue (rte)"
    assert {split: file.rows for split, file in pack.files.items()} == {"train": 1, "dev": 1, "test": 1}
    assert open_pack("glue/rte", "validation", [tmp_path])[0]["label"] == "not_entailment"
    assert open_pack("glue/rte", "test", [tmp_path])[0]["label"] is None


def test_no_connection_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    def load(*_: Any, **__: Any) -> Split:
        raise ConnectionError("no route")

    with pytest.raises(LmforgeError, match=r"pack piqa: the Hub does not give baber/piqa \(no route\)"):
        fetch("piqa", tmp_path, load)
    assert not (tmp_path / "piqa").exists()


def test_every_maker_named_is_there() -> None:
    assert {each.rows for each in known_packs().values() if each.rows} <= set(MAKERS)


@pytest.mark.parametrize(
    ("maker", "row", "expected"),
    [
        (
            "hellaswag",
            {"ind": 1, "activity_label": "Mop", "ctx_a": "A man [x] mops.", "ctx_b": "he", "endings": ["[a] stops."]}
            | {"label": "0"},
            {"ind": 1, "ctx": "Mop: A man mops. He", "endings": [" stops."], "label": 0},
        ),
        ("lambada", {"text": "one two three"}, {"context": "one two", "continuation": "three"}),
        (
            "math",
            {"problem": "p", "solution": "so \\boxed{\\frac{1}{2}} it is", "level": "Level 1"},
            {"context": "p", "answer": "\\frac{1}{2}", "chain_of_thought": "so \\boxed{\\frac{1}{2}} it is"}
            | {"category": "algebra", "level": "Level 1"},
        ),
        (
            "winograd",
            {"text": "Joan thanked Susan for help she gave.", "pronoun": "she", "pronoun_loc": 28}
            | {"options": ["Joan", "Susan"], "label": 1},
            {"txt1": "Joan thanked Susan for help", "pron": "she", "txt2": "gave.", "answers": ["Joan", "Susan"]}
            | {"correctAnswer": "B", "source": ""},
        ),
        (
            "squad",
            {"id": "1", "title": "t", "context": "c", "question": "q", "answers": {"text": [], "answer_start": []}},
            {
                "title": "t",
                "paragraphs": [
                    {"context": "c", "qas": [{"id": "1", "question": "q", "answers": [], "is_impossible": True}]}
                ],
            },
        ),
    ],
)
def test_rows_become_ours(maker: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert MAKERS[maker](dict(row), "algebra", {}) == expected
