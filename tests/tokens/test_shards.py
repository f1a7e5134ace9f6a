"""Shards hold every document whole, once, and in order; damage is found and named; nothing is half written."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.recipe import Recipe, parse_recipe
from lmforge.record import content_hash, verify_directory
from lmforge.tokens import shards as module
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards, build_tokens, sample_texts

WORDS = ["forge", "anvil", "hammer", "iron", "steel", "naïve", "smith", "日本", "<|endoftext|>", "spark"]
COUNTS = {"train": 90, "valid": 6, "test": 14}


def text(number: int) -> str:
    generator = random.Random(number)
    return f"{number}\n" + " ".join(generator.choices(WORDS, k=30)) + "\n"


def write_corpus(folder: Path, splits: dict[str, list[str]]) -> Path:
    (folder / "documents").mkdir(parents=True)
    for split, texts in splits.items():
        lines = (
            json.dumps({"id": f"{split}{n}", "text": each, "source": "s", "genre": "code" if n % 3 else "books", "meta": {}})
            for n, each in enumerate(texts)
        )
        data = zstandard.compress("".join(line + "\n" for line in lines).encode())
        (folder / "documents" / f"{split}-00000.jsonl.zst").write_bytes(data)
    return folder


def all_texts() -> dict[str, list[str]]:
    numbers = iter(range(1000))
    return {split: [text(next(numbers)) for _ in range(count)] for split, count in COUNTS.items()}


def recipe(**tokens: Any) -> Recipe:
    return parse_recipe({"tokens": {"vocab_size": 300, "context": 16, **tokens}})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), all_texts())


@pytest.fixture
def built(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token shards in several files a split, and several batches."""
    monkeypatch.setattr(module, "SHARD_TOKENS", 700)
    monkeypatch.setattr(module, "BATCH_CHARS", 900)
    build_tokens(recipe(), corpus, tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.mark.parametrize("split", sorted(COUNTS))
def test_every_document_comes_back_whole_and_in_order(built: Path, split: str) -> None:
    shards, tokenizer, texts = Shards.open(built, split), Tokenizer.load(built / "tokenizer.json"), all_texts()[split]
    assert len(shards.documents) == len(texts) == COUNTS[split]
    position = 0
    for (first, count, size), expected in zip(shards.documents.tolist(), texts, strict=True):
        tokens = shards.read(first, count)
        assert first == position
        assert tokens[0] == tokenizer.end_of_text
        assert 0 not in tokens[1:]
        assert tokenizer.decode(tokens.tolist()) == expected
        assert size == len(expected.encode())
        position += count
    assert position == shards.tokens
    assert shards.bytes == sum(len(each.encode()) for each in texts)
    shards.verify()


def test_files_turn_over_between_documents(built: Path) -> None:
    files = json.loads((built / "index.json").read_text())["splits"]["train"]["files"]
    assert len(files) > 3
    assert all(700 <= file["tokens"] < 1400 for file in files[:-1])
    for file in files:
        assert np.fromfile(built / file["name"], dtype="<u2")[0] == 0
        assert np.load(built / file["documents_name"])[0, 0] == 0
    assert sum(file["documents"] for file in files) == COUNTS["train"]


def test_reading_across_files_equals_reading_all(built: Path) -> None:
    shards = Shards.open(built, "train")
    files = [np.fromfile(path, dtype="<u2") for path in sorted(built.glob("train-*.bin"))]
    whole = np.concatenate(files).astype(np.int64)
    assert np.array_equal(shards.read(0, shards.tokens), whole)
    edge = len(files[0])
    places = [(0, 0), (edge, 0), (edge - 1, 2), (edge, 5), (edge - 1, len(files[1]) + 2), (shards.tokens, 0), (shards.tokens - 3, 3)]
    generator = random.Random(0)
    for _ in range(100):
        start = generator.randrange(shards.tokens)
        places.append((start, generator.randrange(shards.tokens - start + 1)))
    for start, length in places:
        piece = shards.read(start, length)
        assert piece.dtype == np.int64
        assert np.array_equal(piece, whole[start : start + length])


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, -1), (0, 10**9), (10**9, 0)])
def test_reading_outside_the_split_is_refused(built: Path, start: int, length: int) -> None:
    with pytest.raises(IndexError, match="of the train split, which has"):
        Shards.open(built, "train").read(start, length)


def test_the_figures_are_those_of_the_shards(corpus: Path, tmp_path: Path) -> None:
    figures = build_tokens(recipe(), corpus, tmp_path / "tokens")
    shards = {split: Shards.open(tmp_path / "tokens", split) for split in COUNTS}
    assert figures["vocab_size"] == shards["train"].vocab_size == 300
    for split, each in shards.items():
        assert figures[f"tokens_{split}"] == each.tokens
        assert figures[f"documents_{split}"] == COUNTS[split]
        assert figures[f"bytes_{split}"] == each.bytes
    train = shards["train"]
    assert figures["bytes_per_token"] == train.bytes / (train.tokens - COUNTS["train"])
    held = [shards["valid"], shards["test"]]
    assert figures["bytes_per_token_held_out"] == sum(s.bytes for s in held) / (sum(s.tokens for s in held) - 20)
    assert set(figures["bytes_per_token_by_genre"]) == {"books", "code"}
    assert all(1 < ratio < 20 for ratio in figures["bytes_per_token_by_genre"].values())
    assert figures["vocabulary_used"] == len(np.unique(train.read(0, train.tokens))) / 300
    assert figures["sample_bytes"] == train.bytes
    assert json.loads(json.dumps(figures)) == figures


def test_the_same_corpus_gives_the_same_bytes(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tokens(recipe(), corpus, tmp_path / "one")
    monkeypatch.setattr(module, "BATCH_CHARS", 500)
    build_tokens(recipe(), corpus, tmp_path / "two")
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two") is not None
    verify_directory(tmp_path / "one")


def test_the_vocabulary_is_learned_from_the_training_split_alone(corpus: Path, tmp_path: Path) -> None:
    texts = all_texts()
    other = write_corpus(tmp_path / "corpus", {**texts, "valid": ["zq" * 900], "test": ["qz" * 900]})
    hashes = []
    for source in (corpus, other):
        build_tokens(recipe(), source, tmp_path / "tokens")
        hashes.append(Shards.open(tmp_path / "tokens", "train").tokenizer_sha256)
    assert hashes[0] == hashes[1]


def test_a_large_vocabulary_takes_four_bytes_a_token(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_dtype", lambda size: np.dtype("<u4"))
    build_tokens(recipe(), corpus, tmp_path / "tokens")
    shards = Shards.open(tmp_path / "tokens", "valid")
    assert (tmp_path / "tokens" / "valid-00000.bin").stat().st_size == 4 * shards.tokens
    tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json")
    assert tokenizer.decode(shards.read(0, shards.tokens).tolist()) == "".join(all_texts()["valid"])


def test_two_bytes_serve_as_far_as_they_reach() -> None:
    assert [module._dtype(size).itemsize for size in (257, 65_536, 65_537, 5_000_000)] == [2, 2, 4, 4]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=80), st.integers(1, 400))
def test_the_sample_is_even_and_within_its_bytes(texts: list[str], most: int) -> None:
    sample, size, total = sample_texts(iter(texts), most)
    assert total == sum(len(each.encode()) for each in texts)
    assert size == sum(len(each.encode()) for each in sample)
    assert size <= most or len(sample) == 1
    strides = [2**power for power in range(8)]
    assert next(stride for stride in strides if texts[::stride] == sample)  # every text, every 2nd, every 4th …
    if total <= most:
        assert sample == texts


def test_a_small_sample_still_encodes_everything(corpus: Path, tmp_path: Path) -> None:
    figures = build_tokens(recipe(vocab_size=270, sample_bytes=4000), corpus, tmp_path / "tokens")
    assert 2000 < figures["sample_bytes"] <= 4000
    assert figures["documents_train"] == COUNTS["train"]


@pytest.mark.parametrize(("split", "mend"), [
    ("train", r"add texts or lower tokens\.context"),
    ("valid", r"add texts, raise corpus\.holdout or lower tokens\.context"),
    ("test", r"add texts, raise corpus\.holdout or lower tokens\.context"),
])  # fmt: skip
def test_a_split_too_small_for_one_row_is_refused_and_nothing_is_left(tmp_path: Path, split: str, mend: str) -> None:
    texts = all_texts() if split != "train" else {name: ["ab ab ab ab"] * 40 for name in COUNTS}
    source = write_corpus(tmp_path / "corpus", {**texts, split: ["ab ab ab"]})
    with pytest.raises(InputError, match=rf"^corpus: the {split} split holds (\d+) tokens, less than one row of 17 "
                                         rf"\(tokens\.context \+ 1\); {mend}$"):
        build_tokens(recipe(vocab_size=258 if split == "train" else 300), source, tmp_path / "tokens")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_one_row_exactly_is_enough(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus", {**all_texts(), "valid": ["\x01" * 16]})
    assert build_tokens(recipe(), source, tmp_path / "tokens")["tokens_valid"] == 17


def test_too_large_a_vocabulary_leaves_the_older_shards_alone(corpus: Path, built: Path) -> None:
    before = content_hash(built)
    with pytest.raises(InputError, match=r"tokens\.vocab_size: 60000 is more than these texts support"):
        build_tokens(recipe(vocab_size=60_000), corpus, built)
    assert content_hash(built) == before
    assert [path.name for path in built.parent.iterdir()] == ["tokens"]


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no 'train' documents; run the corpus stage first"):
        build_tokens(recipe(), tmp_path / "corpus", tmp_path / "tokens")


def test_no_shards_and_no_such_split_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no token shards here \(index\.json is missing\); run the tokens stage first"):
        Shards.open(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"index\.json: has no split 'dev'; it has test, train, valid"):
        Shards.open(built, "dev")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("name", "damage", "message"), [
    ("train-00001.bin", truncate, r"train-00001\.bin: \d+ bytes, but index\.json says \d+ \(truncated or altered\); restore it"),
    ("train-00001.bin", Path.unlink, r"train-00001\.bin: missing; restore it or run the tokens stage again"),
    ("tokenizer.json", truncate, r"tokenizer\.json: not the tokenizer these shards were made with"),
    ("tokenizer.json", Path.unlink, r"tokenizer\.json: not the tokenizer these shards were made with"),
    ("index.json", truncate, None),
    ("index.json", lambda path: path.write_text("{"), r"index\.json: not a readable index of token shards .*; run the tokens stage again"),
    ("index.json", lambda path: path.write_text("[]"), r"index\.json: not a readable index of token shards"),
])  # fmt: skip
def test_damage_is_found_at_opening_and_named(built: Path, name: str, damage: Callable[[Path], Any], message: str | None) -> None:
    damage(built / name)
    if message is None:  # the last byte of the index is only its line end
        assert Shards.open(built, "train").tokens
        return
    with pytest.raises(InputError, match=message):
        Shards.open(built, "train")


def test_an_index_that_contradicts_itself_is_refused(built: Path) -> None:
    index = json.loads((built / "index.json").read_text())
    index["splits"]["train"]["tokens"] += 1
    (built / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: its files hold \d+ tokens, not \d+; run the tokens stage again"):
        Shards.open(built, "train")


@pytest.mark.parametrize("name", ["train-00002.bin", "train-00002.docs.npy"])
def test_one_changed_byte_is_found_by_the_checksum(built: Path, name: str) -> None:
    data = bytearray((built / name).read_bytes())
    data[-1] ^= 1
    (built / name).write_bytes(bytes(data))
    shards = Shards.open(built, "train")
    with pytest.raises(InputError, match=rf"{name}: its bytes do not match the checksum in index\.json \(altered or damaged\)"):
        shards.verify()


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: np.save(path, np.zeros((1, 3), dtype=np.int64))])
def test_a_damaged_document_index_is_refused(built: Path, damage: Callable[[Path], Any]) -> None:
    damage(built / "train-00001.docs.npy")
    with pytest.raises(InputError, match=r"train-00001\.docs\.npy: not a readable document index .*; run the tokens stage again"):
        _ = Shards.open(built, "train").documents
