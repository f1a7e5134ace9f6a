"""Made documents: labelled, capped, for training only, the same whoever makes them, and every one accounted for."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmforge.corpus.build import SPLITS, build_corpus, read_documents
from lmforge.corpus.synthesize.documents import passages
from lmforge.corpus.synthesize.noise import words
from lmforge.errors import InputError
from lmforge.recipe import Recipe, parse_recipe
from lmforge.record import content_hash

KINDS = ["river", "mountain", "valley", "forest", "meadow", "village", "castle", "garden", "harbour", "island"]


def text(number: int) -> str:
    rng = random.Random(number)
    return (
        " ".join(
            f"The {rng.choice(KINDS)} near the {rng.choice(KINDS)} is {rng.randrange(100)} miles away."
            for _ in range(6)
        )
        + "\n"
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": text(number), "genre": "code" if number % 10 == 0 else "books"}) + "\n"
            for number in range(400)
        )
    )
    return path


def recipe(texts: Path, synthesis: Sequence[dict[str, Any]] = (), tasks: int = 0, **corpus: Any) -> Recipe:
    sources: list[dict[str, Any]] = [{"kind": "jsonl", "path": texts}]
    if tasks:
        sources.append({"kind": "procedural", "documents": tasks, "genre": "technical"})
    plain = {"near_duplicates": 1.0, "repeated_lines": 0, "rules": []}  # the texts are of a few words
    return parse_recipe(
        {"corpus": {"holdout": 0.2, "sources": sources, "synthesis": list(synthesis), **plain, **corpus}}
    )


def shouting(texts: Sequence[str], source: str, target: str) -> list[str]:
    """A translator of sorts: German is English in capitals, and comes back with one word changed."""
    return [each.upper() if target == "de" else each.capitalize().replace("miles", "leagues") for each in texts]


ALL = (
    {"method": "augment", "share": 0.05},
    {"method": "noise", "share": 0.05},
    {"method": "back_translation", "model": "m", "share": 0.05},
)


def made(corpus: Path) -> list[dict[str, Any]]:
    return [document for document in read_documents(corpus, "train") if "synthetic" in document["meta"]]


def test_labelled_counted_and_never_held_out(texts: Path, tmp_path: Path) -> None:
    figures = build_corpus(recipe(texts, ALL, tasks=2000), tmp_path / "corpus", {2: shouting})
    documents = made(tmp_path / "corpus")
    synthetic = figures["synthetic"]
    assert {document["meta"]["synthetic"] for document in documents} == {
        "augment",
        "noise",
        "back_translation",
        "procedural",
    }
    assert set(synthetic["methods"]) == {"augment", "noise", "back_translation", "procedural"}
    for name, method in synthetic["methods"].items():
        mine = [document for document in documents if document["meta"]["synthetic"] == name]
        assert method["documents"] == len(mine) > 0
        assert method["bytes"] == sum(len(document["text"].encode()) for document in mine)
        if name != "procedural":
            assert 0.042 < method["share"] <= 0.05
    assert synthetic["share"] <= 0.2
    assert synthetic["bytes"] == sum(method["bytes"] for method in synthetic["methods"].values())
    train = list(read_documents(tmp_path / "corpus", "train"))
    assert figures["splits"]["train"] == {
        "documents": len(train),
        "bytes": sum(len(document["text"].encode()) for document in train),
    }
    for split in SPLITS[1:]:
        assert not [
            document for document in read_documents(tmp_path / "corpus", split) if "synthetic" in document["meta"]
        ]
    statistics = json.loads((tmp_path / "corpus" / "statistics.json").read_text())
    assert statistics["synthetic"] == synthetic
    real = {document["id"]: document for document in train if "synthetic" not in document["meta"]}
    for document in documents:
        if document["meta"]["synthetic"] != "procedural":  # made of training text alone, and of the same genre
            assert (
                real[document["meta"]["made_from"]]["genre"]
                == document["genre"]
                != ("code" if document["meta"]["synthetic"] != "noise" else "")
            )
        for start, end in document["meta"].get("loss_spans", []):
            assert 0 <= start < end <= len(document["text"])


def test_the_same_recipe_makes_the_same_bytes_and_another_seed_others(texts: Path, tmp_path: Path) -> None:
    one, two = recipe(texts, ALL, tasks=50), recipe(texts, ALL, tasks=50)
    for name, each in (("one", one), ("two", two), ("three", two.model_copy(update={"seed": 9}))):
        build_corpus(each, tmp_path / name, {2: shouting})
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    assert {d["text"] for d in made(tmp_path / "one")} != {d["text"] for d in made(tmp_path / "three")}


@given(st.floats(0, 0.6), st.lists(st.floats(0.01, 0.3), max_size=2), st.integers(0, 3000))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_cap_is_never_passed(texts: Path, tmp_path: Path, cap: float, shares: list[float], tasks: int) -> None:
    steps = [{"method": method, "share": share} for method, share in zip(("noise", "augment"), shares, strict=False)]
    if sum(shares) > cap:
        with pytest.raises(InputError, match="add up to"):
            recipe(texts, steps, tasks, synthetic_share=cap)
        return
    synthetic = build_corpus(recipe(texts, steps, tasks, synthetic_share=cap), tmp_path / "corpus")["synthetic"]
    assert synthetic["share"] <= cap + 1e-9
    for step in steps:
        # of the whole, where the other step finds nothing to give
        most = step["share"] / (1 - sum(shares) + step["share"])
        assert synthetic["methods"][step["method"]]["share"] <= most + 1e-9


def test_tasks_stop_where_the_cap_is(texts: Path, tmp_path: Path) -> None:
    synthetic = build_corpus(recipe(texts, tasks=100_000), tmp_path / "corpus")["synthetic"]
    assert 0.19 < synthetic["share"] <= 0.2
    assert synthetic["methods"]["procedural"]["skipped"] == {"beyond_the_share": 1}
    none = build_corpus(recipe(texts, tasks=100, synthetic_share=0), tmp_path / "none")["synthetic"]
    assert none["documents"] == 0


def test_shares_above_a_half_take_documents_more_than_once(texts: Path, tmp_path: Path) -> None:
    synthetic = build_corpus(
        recipe(texts, [{"method": "augment", "share": 0.6}], synthetic_share=0.7), tmp_path / "corpus"
    )["synthetic"]
    assert 0.5 < synthetic["share"] <= 0.6
    sources = [document["meta"]["made_from"] for document in made(tmp_path / "corpus")]
    assert len(sources) > len(set(sources))


def test_paraphrases_report_their_likeness(texts: Path, tmp_path: Path) -> None:
    step = {"method": "back_translation", "model": "m", "share": 0.1}
    method = build_corpus(recipe(texts, [step]), tmp_path / "corpus", {0: shouting})["synthetic"]["methods"][
        "back_translation"
    ]
    assert method["likeness"]["pairs"] == method["documents"] + method["skipped"].get("beyond_the_share", 0)
    assert 60 < method["likeness"]["chrf"] < 100
    assert 0 < method["likeness"]["novel_1"] < method["likeness"]["novel_2"] < 0.5
    with pytest.raises(InputError, match="no translation model"):
        build_corpus(recipe(texts, [step]), tmp_path / "other")


def test_a_users_own_mark_of_synthetic_text_is_data(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": text(n), "meta": {"synthetic": "elsewhere"} if n % 2 else {}}) + "\n"
            for n in range(200)
        )
    )
    settings = {"holdout": 0.4, "near_duplicates": 1.0, "sources": [{"kind": "jsonl", "path": path}]}
    build_corpus(parse_recipe({"corpus": settings}), tmp_path / "corpus")
    for split in SPLITS:
        documents = list(read_documents(tmp_path / "corpus", split))
        assert not any("synthetic" in document["meta"] for document in documents)
        assert any("elsewhere" in json.dumps(document["meta"]) for document in documents)


@given(st.text(max_size=400), st.integers(1, 80))
def test_passages_are_the_text_in_order(text: str, chars: int) -> None:
    cut = list(passages(text, chars))
    joined = "".join(cut)
    assert text.startswith(joined)
    assert len(text) - len(joined) < max(chars, 1)
    assert all(len(each) <= chars or len(words(each)) == 1 for each in cut)


def test_texts_without_blanks_are_not_augmented(tmp_path: Path) -> None:
    """Their signs are no words: one lost or exchanged makes another word of its neighbours."""
    lines = [
        "".join(random.Random(number).choices("我买了一本书他看很久你说什么", k=90)) + "。" for number in range(80)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line, "genre": "books"}) + "\n" for line in lines))
    figures = build_corpus(recipe(path, ({"method": "augment", "share": 0.2},)), tmp_path / "corpus")
    (method,) = figures["synthetic"]["methods"].values()
    assert method["documents"] == 0
    assert method["skipped"]["no_blanks"] > 0
