"""A finished corpus, analysed: every figure with its definition and sample, and the same each time."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmforge.corpus.measure.analyse import analyse, entropies, languages
from lmforge.corpus.measure.sampling import SampledPiece
from lmforge.recipe import load_recipe


def with_definitions(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    return [value] * ("definition" in value) + [
        inner_defined for inner in value.values() for inner_defined in with_definitions(inner)
    ]


def test_the_tiny_corpus_is_measured(tiny_run: Path) -> None:
    recipe = load_recipe(tiny_run.parent / "recipe.toml")
    analysis = analyse(tiny_run / "corpus", recipe)
    assert analysis == analyse(tiny_run / "corpus", recipe)
    written = json.loads((tiny_run / "corpus/statistics.json").read_text())["analysis"]
    assert written == json.loads(json.dumps(analysis))
    assert {"entropy", "heaps", "type_token", "repetition", "readability", "languages", "topics", "genres"} <= set(
        analysis
    )
    defined = with_definitions(analysis)
    assert len(defined) > 15
    assert all(
        len(row["definition"]) > 20 and any(key.startswith("sample") or key in ("train", "runs") for key in row)
        for row in defined
    )


def test_nothing_is_asked_for_and_nothing_is_there(tiny_run: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_run.parent / "recipe.toml", ["corpus.analyse_bytes=0"])
    assert analyse(tiny_run / "corpus", recipe) == {}
    empty = analyse(tmp_path, load_recipe(tiny_run.parent / "recipe.toml"))
    assert empty["sample"]["train"]["bytes"] == 0
    assert empty["topics"]["topics"] == []
    json.dumps(empty, allow_nan=False)


def test_bits_per_word_and_per_byte_are_one_quantity() -> None:
    train, held_out = ["the cat sat on the mat and the dog ran " * 50], ["the cat sat on the mat and the dog ran " * 12]
    rows = entropies(train, held_out)
    words, size = 120, len(held_out[0])
    assert {f"{what}_order_{order}" for what in ("words", "bytes") for order in range(1, 6)} | {
        "lzma",
        "context_mixing",
    } == set(rows)
    for row in rows.values():
        assert row["bits_per_word"] * words == pytest.approx(row["bits_per_byte"] * size)
    assert rows["words_order_3"]["value"] < rows["words_order_1"]["value"]


def test_languages_are_told() -> None:
    english = "The committee will meet again in the morning to hear what the others have found in the meantime. "
    german = (
        "Der Ausschuss wird sich am Morgen wieder treffen, um zu hören, was die anderen inzwischen gefunden haben. "
    )
    pieces = [SampledPiece("a", "web", english * 3)] * 3 + [
        SampledPiece("b", "web", german * 3),
        SampledPiece("c", "code", "x = 1"),
    ]
    assert languages(pieces)["shares"] == {"en": 0.75, "de": 0.25}
    assert languages(pieces)["sample_pieces"] == 4
