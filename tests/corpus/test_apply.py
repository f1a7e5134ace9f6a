"""What is kept goes into shards: copies in training alone, what repeated lines leave too short is dropped."""

from __future__ import annotations

from pathlib import Path

from lmforge.corpus.build import build_corpus, read_documents
from lmforge.corpus.splits import SPLITS
from lmforge.recipe import Recipe
from tests.corpus.test_build import jsonl, recipe
from tests.corpus.test_holdout import prose


def changed(made: Recipe, **keys: object) -> Recipe:
    """The recipe with other values for its sources' keys."""
    sources = tuple(each.model_copy(update=keys) for each in made.corpus.sources)
    return made.model_copy(update={"corpus": made.corpus.model_copy(update={"sources": sources})})


def test_copies_of_a_weighted_source_stand_in_training_alone(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [prose(number, 6) for number in range(60)])
    made = changed(recipe(source, holdout=0.3), weight=3.0)
    figures = build_corpus(made, tmp_path / "corpus")
    texts = {split: [each["text"] for each in read_documents(tmp_path / "corpus", split)] for split in SPLITS}
    assert all(texts["train"].count(text) == 3 for text in texts["train"])
    assert all(len(set(texts[split])) == len(texts[split]) for split in ("valid", "test"))
    assert figures["splits"]["train"]["documents"] == len(texts["train"])


def test_what_repeated_lines_leave_too_short_is_dropped_with_its_reason(tmp_path: Path) -> None:
    menu = "\n".join(f"Section {number}: this line of the menu stands on every page." for number in range(6))
    texts = [f"{menu}\n{prose(number, 8)}" for number in range(40)] + [f"{menu}\nOnly a few words here now."]
    made = recipe(jsonl(tmp_path / "a.jsonl", texts), holdout=0.2, repeated_lines=10, near_duplicates=1.0)
    figures = build_corpus(changed(made, genre="news"), tmp_path / "corpus")
    kept = [each["text"] for split in SPLITS for each in read_documents(tmp_path / "corpus", split)]
    assert not any("Section 3: this line" in text for text in kept)
    assert figures["dropped"]["repeated_lines"] == 1
    assert len(kept) == 40
