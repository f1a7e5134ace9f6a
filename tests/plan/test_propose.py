"""`lmforge new`: a recipe for any texts that loads and that the texts support."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lmforge.corpus.build import build_corpus
from lmforge.errors import InputError
from lmforge.plan.hardware import Hardware
from lmforge.plan.propose import recipe_for
from lmforge.plan.simulate import plan, training_length
from lmforge.recipe import Recipe, Source, load_recipe
from lmforge.tokens.build import build_tokens
from tests.plan.conftest import LAPTOP, folder, sentences


def loaded(texts: Path, where: Path, hardware: Hardware = LAPTOP) -> Recipe:
    recipe = where / "recipe.toml"
    recipe.write_text(recipe_for(texts, hardware))
    return load_recipe(recipe)


@pytest.mark.parametrize(
    ("documents", "count"), [(4, 120), (25, 40), (300, 3), (60, 150)], ids=["few", "50 kB", "short", "450 kB"]
)
def test_small_texts_support_their_recipe(tmp_path: Path, documents: int, count: int) -> None:
    recipe = loaded(folder(tmp_path / "texts", documents, count), tmp_path)
    build_corpus(recipe, tmp_path / "corpus")
    figures = build_tokens(recipe, tmp_path / "corpus", tmp_path / "tokens")
    steps, batch = training_length(recipe)
    assert figures["vocab_size"] == recipe.tokens.vocab_size
    assert batch <= figures["tokens_train"]
    assert steps * batch <= 10.5 * figures["tokens_train"]
    planned = plan(recipe, LAPTOP)
    assert planned["fits"]
    assert planned["hours"] < 0.15


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.txt": "hello"},
        {"a.bin": "x" * 5000},
        {".hidden.txt": "x" * 5000},
        {"a.txt": ""},
        {f"{n}.txt": "same words in each of the files\n" * 3 for n in range(40)},
    ],
)
def test_nothing_usable_is_one_clear_error(tmp_path: Path, files: dict[str, str]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in files.items():
        (texts / name).write_text(text)
    with pytest.raises(InputError) as error:
        recipe_for(texts, LAPTOP)
    assert "texts" in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_and_binary_texts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        recipe_for(tmp_path / "nowhere", LAPTOP)
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(InputError, match="binary"):
        recipe_for(tmp_path / "a.txt", LAPTOP)


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz"])
def test_jsonl_and_its_field(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps({"id": n, "url": "x", "body": sentences(n, 30)}) + "\n" for n in range(60)).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    recipe = loaded(tmp_path / name, tmp_path)
    assert recipe.corpus.sources == (Source(kind="jsonl", path=(tmp_path / name).resolve(), text_field="body"),)
    assert recipe.evaluate == Recipe().evaluate


def test_broken_jsonl_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "a" * 100}) + "\n{broken\n")
    with pytest.raises(InputError, match=r"docs\.jsonl:2"):
        recipe_for(tmp_path / "docs.jsonl", LAPTOP)


def test_parquet_and_its_field(tmp_path: Path) -> None:
    columns = {"number": list(range(60)), "title": ["a"] * 60, "inhalt": [sentences(n, 30) for n in range(60)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "docs.parquet")
    source = loaded(tmp_path / "docs.parquet", tmp_path).corpus.sources[0]
    assert (source.kind, source.text_field) == ("parquet", "inhalt")


def test_the_kind_of_most_bytes_is_taken_and_the_others_named(tmp_path: Path) -> None:
    texts = folder(tmp_path / "te\"xts 'ü", 40)
    (texts / "few.jsonl").write_text(json.dumps({"text": "some words"}) + "\n")
    text = recipe_for(texts, LAPTOP)
    assert "not used: jsonl" in text
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(tmp_path / "recipe.toml").corpus.sources[0].path == texts.resolve()


def test_the_baseline_is_left_out_where_it_would_take_longest(tmp_path: Path) -> None:
    texts = folder(tmp_path / "texts", 2, 40_000)
    with (texts / "zz.txt").open("w") as file:
        file.truncate(400_000_000)  # a hole, which nothing reads: two megabytes come before it
    assert loaded(texts, tmp_path).evaluate.tasks == ("bits_per_byte", "completions_parse", "generation_speed")
