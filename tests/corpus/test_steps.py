"""Plans survive their file; lines that many documents repeat go; duplicates are found over task borders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus import build, steps
from lmforge.corpus.build import build_corpus, read_documents
from lmforge.corpus.sources.files import File, SourcePart
from lmforge.corpus.splits import SPLITS
from lmforge.corpus.steps import CorpusPlan, document_line, load_plan
from lmforge.recipe import parse_recipe
from tests.corpus.test_build import dropped_lines, jsonl, recipe, text


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    part = SourcePart("a", (File("a\udcff", Path("/x/a\udcff"), 5, 7), File("b", Path("/x/b"), 6, 8)), 3, None, 11)
    plan = CorpusPlan(parse_recipe({"seed": 9}), (((0, part), (1, part)), ((1, part),)))
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", 1) == plan


def test_a_document_is_one_line_of_json_whatever_it_holds() -> None:
    for value in ("a\nb\u2028", "\ud800", 2**70):
        line = document_line({"id": "1", "text": "t", "source": "s", "genre": "web", "meta": {"v": value}})
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert json.loads(line.decode())["meta"]["v"] == (value if value != "\ud800" else "?")


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TASK_BYTES", 1)
    monkeypatch.setattr(build, "SLICE_BYTES", 4096)


def outcome(folder: Path) -> dict[str, Any]:
    return {split: [document["text"] for document in read_documents(folder, split)] for split in SPLITS}


@pytest.mark.usefixtures("small_tasks")
def test_duplicates_are_found_over_task_borders(tmp_path: Path) -> None:
    texts = [text(number, 80) for number in range(60)]
    near = [each.replace(each.split()[9], "else") for each in texts[:5]]
    files = [
        jsonl(tmp_path / f"{number}.jsonl", part)
        for number, part in enumerate([texts[:30], texts[30:], [*near, *texts[5:12]]])
    ]
    figures = build_corpus(recipe(*files), tmp_path / "corpus")
    assert figures["dropped"] == {"exact_duplicate": 7, "near_duplicate": 5}
    # the first of each stays
    assert sorted(each for part in outcome(tmp_path / "corpus").values() for each in part) == sorted(texts)
    overlap = figures["overlap"]
    assert overlap["exact"]["cluster_sizes"] == {"2": 7}
    assert overlap["near"]["cluster_sizes"] == {"2": 5}
    assert overlap["near"]["share"] == pytest.approx(5 / 72)
    assert {pair["kept"]["text"][:60] for pair in overlap["near"]["pairs"]} == {each[:60] for each in texts[:5]}
    assert all(0.75 <= pair["similarity"] < 1 for pair in overlap["near"]["pairs"])
    same = build_corpus(recipe(*files, near_duplicates=1.0), tmp_path / "other")
    assert same["dropped"] == {"exact_duplicate": 7}


@pytest.mark.usefixtures("small_tasks")
def test_lines_that_many_documents_repeat_go(tmp_path: Path) -> None:
    banner, rare = (
        "Subscribe to our newsletter, and follow us everywhere!",
        "This line stands in three documents and is no boilerplate.",
    )
    texts = [
        f"{banner if number < 12 else rare if number < 15 else 'Only here'}\n{text(number)}" for number in range(40)
    ]
    texts.append(f"{banner}\nToo little is left of this one without it.")
    figures = build_corpus(recipe(jsonl(tmp_path / "a.jsonl", texts)), tmp_path / "corpus")
    kept = [each for part in outcome(tmp_path / "corpus").values() for each in part]
    assert not [each for each in kept if banner in each]
    assert len([each for each in kept if rare in each]) == 3
    assert figures["dropped"] == {"repeated_lines": 1}
    assert dropped_lines(tmp_path / "corpus")[0]["text"] == "Too little is left of this one without it."
    lines = figures["overlap"]["lines"]
    assert lines["removed"] == lines["documents"] == 13
    assert lines["bytes"] == 13 * (len(banner) + 1)
    assert lines["examples"] == [{"documents": 13, "line": banner}]
    assert figures["bytes_out"] == sum(len(each) for each in kept)
    assert (
        "repeated_lines"
        not in build_corpus(recipe(tmp_path / "a.jsonl", repeated_lines=0), tmp_path / "other")["dropped"]
    )


@pytest.mark.usefixtures("small_tasks")
def test_benchmark_texts_are_kept_out(tmp_path: Path) -> None:
    texts = [text(number) for number in range(50)]
    quiz = jsonl(
        tmp_path / "quiz.jsonl",
        ["Which of these planets is the largest one in all of the solar system, and why is that so?"],
    )
    planted = [
        "Before. WHICH of these planets is\nthe largest one in all of the solar system and why is that so! " + texts[0],
        texts[7].upper(),
    ]
    source = jsonl(tmp_path / "a.jsonl", texts + planted)
    figures = build_corpus(recipe(source, decontaminate=[quiz]), tmp_path / "corpus", benchmarks={"other": [texts[7]]})
    assert figures["dropped"] == {"contaminated": 3}
    measured = figures["decontamination"]
    assert measured["found"] == {"other": 2, "quiz.jsonl": 1}
    assert measured["benchmarks"] == 2
    assert all(each["recall"] == 1.0 for each in measured["planted"].values())


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6), max_size=8))
def test_pairs_of_many_parts_stand_once(parts: list[list[tuple[int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "PAIRS_WAITING", 3)
        distinct = steps._distinct(np.array(part, np.uint64).reshape(-1, 2).T for part in parts)
    assert distinct.T.tolist() == sorted(map(list, {pair for part in parts for pair in part}))
