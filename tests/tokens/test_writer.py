"""Shards hold every document whole, once, and in order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmforge.tokens import build
from lmforge.tokens import writer as module
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.shards import Shards
from tests.tokens.conftest import COUNTS, all_texts, in_groups, recipe, write_documents


@pytest.mark.parametrize("split", sorted(COUNTS))
def test_every_document_comes_back_whole_and_in_order(built: Path, split: str) -> None:
    shards, tokenizer, texts = (
        Shards.open(built, split),
        Tokenizer.load(built / "tokenizer.json"),
        in_groups(split, all_texts()[split]),
    )
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
    lasts = {(file["source"], file["genre"]): file["name"] for file in files}
    assert all(700 <= file["tokens"] < 1400 for file in files if file["name"] not in lasts.values())
    for file in files:
        assert np.fromfile(built / file["name"], dtype="<u2")[0] == 0
        assert np.load(built / file["documents_name"])[0, 0] == 0
    assert sum(file["documents"] for file in files) == COUNTS["train"]


def test_a_large_vocabulary_takes_four_bytes_a_token(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (module, build):
        monkeypatch.setattr(each, "token_dtype", lambda size: np.dtype("<u4"))
    build_tokens(recipe(), corpus, tmp_path / "tokens")
    shards = Shards.open(tmp_path / "tokens", "valid")
    assert (tmp_path / "tokens" / "valid-00000.bin").stat().st_size == 4 * shards.tokens
    tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json")
    assert tokenizer.decode(shards.read(0, shards.tokens).tolist()) == "".join(all_texts()["valid"])


def test_kinds_of_training_text_lie_together_and_are_labelled(built: Path) -> None:
    train, valid = Shards.open(built, "train"), Shards.open(built, "valid")
    assert [(group.source, group.genre) for group in train.groups] == [("s", "books"), ("s", "code")]
    assert [group.first for group in train.groups] == [0, train.groups[0].tokens]
    assert sum(group.tokens for group in train.groups) == train.tokens
    books = [train.sources[source] + train.genres[genre] for source, genre in train.labels.tolist()]
    assert books == ["sbooks"] * 30 + ["scode"] * 60
    assert [valid.genres[genre] for _, genre in valid.labels.tolist()] == ["books", "code", "code"] * 2
    assert [(group.source, group.first, group.tokens) for group in valid.groups] == [("", 0, valid.tokens)]
    starts = train.documents[:, 0]
    assert np.array_equal(train.document_starts(0, train.tokens), starts)
    for start, stop in ((0, 0), (1, starts[5]), (starts[20] + 1, starts[70] + 1), (starts[-1] + 1, train.tokens)):
        assert np.array_equal(train.document_starts(start, stop), starts[(starts >= start) & (starts < stop)])


@pytest.fixture
def masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two genres, shards of one to three documents, some with parts that do not count."""
    monkeypatch.setattr(module, "SHARD_TOKENS", 60)
    metas: list[dict[str, Any]] = [{}, {"loss_spans": [[2, 5]]}, {"loss_spans": []}, {"loss_spans": [[0, 3], [18, 26]]}]
    documents = [
        {
            "id": str(n),
            "text": "abcdefghijklmnopqrstuvwxyz",
            "source": "s",
            "genre": "code" if n % 5 else "books",
            "meta": metas[n % 4],
        }
        for n in range(20)
    ]
    write_documents(tmp_path / "corpus", dict.fromkeys(COUNTS, documents))
    build_tokens(recipe(vocab_size=257), tmp_path / "corpus", tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_mask_says_what_counts(masked: Path, split: str) -> None:
    shards = Shards.open(masked, split)
    assert shards.masked
    shards.verify()
    every = {0: {*range(26)}, 1: {2, 3, 4}, 2: set(), 3: {*range(3), *range(18, 26)}}
    numbers = (
        [n for n in range(20) if n % 5 == 0] + [n for n in range(20) if n % 5] if split == "train" else [*range(20)]
    )
    expected: list[bool] = []
    for place, number in enumerate(numbers):
        begins_group = place == 0 or (split == "train" and place == 4)
        before = 0 if begins_group else numbers[place - 1] % 4
        expected += [begins_group or 25 in every[before], *(character in every[number % 4] for character in range(26))]
    assert shards.counts(0, shards.tokens).tolist() == expected
    for start in range(0, shards.tokens - 70, 13):
        assert shards.counts(start, 67).tolist() == expected[start : start + 67]
    index = json.loads((masked / "index.json").read_text())
    assert index["splits"][split]["uncounted"] == sum(26 - len(every[number % 4]) for number in numbers)


def test_a_corpus_where_all_counts_has_no_masks(built: Path) -> None:
    assert not Shards.open(built, "train").masked
    assert not [*built.glob("*.mask")]
