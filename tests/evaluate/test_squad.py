"""SQuAD's questions: read from articles, parted by use without overlap, unanswerable ones made where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.packs import find_pack
from lmforge.evaluate.squad import (
    Parts,
    gold_of,
    official_file,
    parts_of,
    questions_of,
    scored_questions,
    training_questions,
)
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.squad_for_tests import article, squad_pack


def here(folder: Path, monkeypatch: pytest.MonkeyPatch, train: str) -> None:
    root = shared_packs(folder, squad_pack(train))
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(folder / "none"))


def titles(parts: Parts) -> list[set[str]]:
    return [{each.title for each in part} for part in (parts.learned, parts.threshold, parts.scored)]


def test_questions_and_their_official_file() -> None:
    rows = [article(3)]
    questions = list(questions_of(rows))
    assert [bool(each.answers) for each in questions] == [True, False, True, False]
    first = questions[0].answers[0]
    assert questions[0].context[first.start : first.start + len(first.text)] == first.text
    assert gold_of(questions)["3-1"] == []
    data = official_file(questions)["data"]
    assert isinstance(data, list)
    assert list(questions_of(data)) == questions
    with pytest.raises(InputError, match="row 1: no article"):
        list(questions_of([{"title": "x", "paragraphs": [{"qas": [{}]}]}]))


def test_parts_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(tmp_path, monkeypatch, "train_v2")
    parts = parts_of()
    learned, threshold, scored = titles(parts)
    assert learned | threshold == {f"T{number}" for number in range(8)}
    assert not learned & threshold
    assert scored == {f"T{number}" for number in range(20, 24)}
    assert "made" not in str(parts.said)
    few = parts_of(examples=5, items=3)
    assert (len(few.learned), len(few.scored)) == (5, 3)
    assert {each.id for each in few.scored} <= {each.id for each in scored_questions()}


def test_unanswerable_questions_are_made_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(tmp_path, monkeypatch, "train_v1")
    assert "train_v2" not in find_pack("squad").files
    questions = {each.id: each for each in training_questions()}
    before = {each.id: each for each in questions_of(article(n, answered_only=True) for n in range(8))}
    moved = [each for name, each in questions.items() if each != before[name]]
    assert len(moved) == len(questions) // 2
    for each in moved:
        assert not each.answers
        assert before[each.id].answers[0].text not in each.context
        assert each.context in {other.context for other in before.values() if other.title == each.title}
    assert "made" in str(parts_of().said)


def test_dev_articles_learned_from_are_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(tmp_path, monkeypatch, "train_v1")
    parts = parts_of(examples=10, learn_dev=0.5)
    learned, threshold, scored = titles(parts)
    assert len(scored) == 2
    assert len(threshold) == 1
    assert not (learned | threshold) & scored
    assert not learned & threshold
    assert len(parts.learned) == 10
    with pytest.raises(InputError, match="no article is left"):
        parts_of(learn_dev=0.99)


def test_a_pack_without_training_says_how_to_make_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"squad": {"dev_v2.0_articles.jsonl": [article(1)]}}
    monkeypatch.setenv("LMFORGE_DATA", str(shared_packs(tmp_path, files).parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    with pytest.raises(InputError, match="lmforge packs fetch squad"):
        training_questions()
