"""Sentence pairs as a source: both directions, in one split; broken pairs refused or counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lmforge.corpus.build import SPLITS, build_corpus, read_documents
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.errors import InputError
from lmforge.recipe import Source, parse_recipe


def pairs(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def source(path: Path, **more: Any) -> Source:
    return Source(kind="parallel", path=path, languages=("en", "de"), **more)


def test_each_pair_becomes_a_document_in_either_direction(tmp_path: Path) -> None:
    path = pairs(tmp_path / "p.jsonl", [{"en": "A dog\n runs.", "de": "Ein Hund rennt.", "fr": "x"}])
    forward, back = iter_documents(source(path))
    assert forward["text"] == "<en> A dog runs.\n<de> Ein Hund rennt.\n"
    assert back["text"] == "<de> Ein Hund rennt.\n<en> A dog runs.\n"
    assert (forward["id"], back["id"]) == ("p.jsonl:1:en-de", "p.jsonl:1:de-en")
    [[start, end]] = forward["meta"]["loss_spans"]
    assert forward["text"][start:end] == " Ein Hund rennt.\n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"en": "A"}, "1: no field 'de'"),
        ({"en": "A", "de": 3}, "1: field 'de' is a int"),
        ({"en": ["A"], "de": "B"}, "1: field 'en' is a list"),
    ],
)
def test_broken_pairs_are_refused_or_skipped(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = pairs(tmp_path / "p.jsonl", [record, {"en": "Yes.", "de": "Ja."}])
    with pytest.raises(InputError, match=message):
        list(iter_documents(source(path)))
    notices: Counter[str] = Counter()
    assert len(list(iter_documents(source(path, damaged="skip"), notices))) == 2
    assert notices == {"skipped: broken JSONL line": 1}


def test_pairs_with_an_empty_side_are_passed_over(tmp_path: Path) -> None:
    notices: Counter[str] = Counter()
    path = pairs(
        tmp_path / "p.jsonl", [{"en": " ", "de": "Ja."}, {"en": None, "de": "Ja."}, {"en": "No.", "de": "Nein."}]
    )
    assert len(list(iter_documents(source(path), notices))) == 2
    assert notices == {"passed over: pair with an empty side": 2}


def test_both_directions_fall_in_one_split_and_short_ones_stay(tmp_path: Path) -> None:
    path = pairs(tmp_path / "p.jsonl", [{"en": f"Number {n}.", "de": f"Zahl {n}."} for n in range(300)])
    figures = build_corpus(
        parse_recipe({"corpus": {"holdout": 0.3, "sources": [source(path).model_dump(exclude_none=True)]}}),
        tmp_path / "corpus",
    )
    assert figures["documents_out"] == 600
    assert not figures["dropped"]
    held: dict[str, set[str]] = {}
    for split in SPLITS:
        for document in read_documents(tmp_path / "corpus", split):
            held.setdefault(document["id"].rsplit(":", 1)[0], set()).add(split)
    assert all(len(splits) == 1 for splits in held.values())
    assert {split for splits in held.values() for split in splits} == set(SPLITS)


def test_a_pair_is_no_near_copy_of_its_other_direction(tmp_path: Path) -> None:
    records = [
        {"en": " ".join(f"word{n}x{i}" for i in range(12)), "de": " ".join(f"wort{n}x{i}" for i in range(12))}
        for n in range(40)
    ]
    path = pairs(tmp_path / "p.jsonl", [*records, records[0]])
    figures = build_corpus(
        parse_recipe({"corpus": {"holdout": 0.3, "sources": [source(path).model_dump(exclude_none=True)]}}),
        tmp_path / "corpus",
    )
    assert figures["dropped"] == {"exact_duplicate": 2}
