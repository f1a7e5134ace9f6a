"""A small corpus and its token shards, in several files a split."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lmforge.recipe import Recipe, parse_recipe
from lmforge.tokens import documents as documents_module
from lmforge.tokens import writer
from lmforge.tokens.build import build_tokens

WORDS = ["forge", "anvil", "hammer", "iron", "steel", "naïve", "smith", "日本", "<|endoftext|>", "spark"]
COUNTS = {"train": 90, "valid": 6, "test": 14}


def text(number: int) -> str:
    generator = random.Random(number)
    return f"{number}\n" + " ".join(generator.choices(WORDS, k=30)) + "\n"


def in_groups(split: str, texts: list[str]) -> list[str]:
    """The order in which `write_corpus`'s texts of a split come to lie: of the training split, books first, then
    code."""
    return texts if split != "train" else texts[::3] + [each for number, each in enumerate(texts) if number % 3]


def write_documents(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    (folder / "documents").mkdir(parents=True)
    for split, documents in splits.items():
        data = zstandard.compress("".join(json.dumps(each) + "\n" for each in documents).encode())
        (folder / "documents" / f"{split}-00000.jsonl.zst").write_bytes(data)
    return folder


def write_corpus(folder: Path, splits: dict[str, list[str]]) -> Path:
    return write_documents(
        folder,
        {
            split: [
                {"id": f"{split}{n}", "text": each, "source": "s", "genre": "code" if n % 3 else "books", "meta": {}}
                for n, each in enumerate(texts)
            ]
            for split, texts in splits.items()
        },
    )


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
    monkeypatch.setattr(writer, "SHARD_TOKENS", 700)
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 900)
    build_tokens(recipe(), corpus, tmp_path / "tokens")
    return tmp_path / "tokens"
