"""Shards hold every document whole, once, and in order."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmforge.tokens import build
from lmforge.tokens import writer as module
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.shards import Shards
from tests.tokens.conftest import COUNTS, all_texts, recipe


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


def test_a_large_vocabulary_takes_four_bytes_a_token(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, build):
        monkeypatch.setattr(each, "token_dtype", lambda size: np.dtype("<u4"))
    build_tokens(recipe(), corpus, tmp_path / "tokens")
    shards = Shards.open(tmp_path / "tokens", "valid")
    assert (tmp_path / "tokens" / "valid-00000.bin").stat().st_size == 4 * shards.tokens
    tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json")
    assert tokenizer.decode(shards.read(0, shards.tokens).tolist()) == "".join(all_texts()["valid"])
