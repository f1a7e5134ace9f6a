"""The tokens stage: honest figures, the same bytes for the same corpus, nothing half written."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.record import content_hash, verify_directory
from lmforge.tokens import documents as documents_module
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import Sample, build_tokens
from lmforge.tokens.shards import Shards
from tests.tokens.conftest import COUNTS, all_texts, recipe, write_corpus, write_documents


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
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 500)
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


@given(st.lists(st.text(max_size=30), min_size=1, max_size=80), st.integers(1, 400))
def test_the_sample_is_even_and_within_its_bytes(texts: list[str], most: int) -> None:
    found = Sample(texts, most)
    sample, size, total = list(found), found.bytes, found.total
    assert total == sum(len(each.encode()) for each in texts)
    assert size == sum(len(each.encode()) for each in sample)
    assert size <= most or len(sample) == 1
    assert list(found) == sample  # read again
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
    with pytest.raises(
        InputError,
        match=rf"^corpus: the {split} split holds (\d+) tokens, less than one row of 17 "
        rf"\(tokens\.context \+ 1\); {mend}$",
    ):
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


@pytest.mark.parametrize("chat", [False, True], ids=["transcript", "chat tokens"])
def test_trainer_and_evaluator_read_the_known_ids(tmp_path: Path, chat: bool) -> None:
    """The golden conversations as documents: their ids and what counts of them, in the training split as the loader
    reads it and in the test split as the scores do."""
    conversations = json.loads((Path(__file__).parent / "golden" / "conversations.json").read_text("utf-8"))[
        "conversations"
    ]
    documents = [
        {"id": str(n), "text": "x" * 70, "source": "chats", "genre": "web", "meta": {"messages": each["messages"]}}
        for n, each in enumerate(conversations)
    ]
    write_documents(tmp_path / "corpus", dict.fromkeys(COUNTS, documents))
    size = 261 if chat else 257
    build_tokens(recipe(vocab_size=size, chat=chat), tmp_path / "corpus", tmp_path / "tokens")
    for split in ("train", "test"):
        shards = Shards.open(tmp_path / "tokens", split)
        ended = "1"
        for (first, count, _), each in zip(shards.documents.tolist(), conversations, strict=True):
            known = each[str(size)]
            assert shards.read(first, count).tolist() == known["learn"]
            counts = "".join("01"[counts] for counts in shards.counts(first, count).tolist())
            assert counts == ended + known["counted"][1:]
            ended = counts[-1]


@pytest.mark.parametrize(
    ("stated", "conversations", "expected"), [(None, True, 5), (None, False, 1), (True, False, 5), (False, True, 1)]
)
def test_chat_tokens_are_there_for_conversations_or_when_asked_for(
    tmp_path: Path, stated: bool | None, conversations: bool, expected: int
) -> None:
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]
    documents = [
        {
            "id": str(n),
            "text": text,
            "source": "s",
            "genre": "web",
            "meta": {"messages": messages} if conversations and n == 3 else {},
        }
        for n, text in enumerate(all_texts()["train"])
    ]
    write_documents(tmp_path / "corpus", dict.fromkeys(COUNTS, documents))
    asked = {} if stated is None else {"chat": stated}
    build_tokens(recipe(**asked), tmp_path / "corpus", tmp_path / "tokens")
    assert len(Tokenizer.load(tmp_path / "tokens" / "tokenizer.json").special) == expected


def test_processes_change_no_byte(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 700)
    for workers in (1, 2):
        build_tokens(recipe(workers=workers), corpus, tmp_path / str(workers))
    assert content_hash(tmp_path / "1") == content_hash(tmp_path / "2")


def test_the_share_that_counts_is_told(tmp_path: Path) -> None:
    documents = [
        {"id": "d", "text": "abcdefghij" * 4, "source": "s", "genre": "web", "meta": {"loss_spans": [[0, 10]]}}
    ] * 3
    write_documents(tmp_path / "corpus", dict.fromkeys(COUNTS, documents))
    figures = build_tokens(recipe(vocab_size=257), tmp_path / "corpus", tmp_path / "tokens")
    assert figures["counted_train"] == pytest.approx(1 - 90 / 123)


def test_quality_is_told_of_training_tokens_and_held_out_texts(corpus: Path, tmp_path: Path) -> None:
    figures = build_tokens(recipe(), corpus, tmp_path / "tokens")
    found = figures["quality"]
    assert set(found["bytes_per_token_by_genre"]) == {"books", "code"}
    assert found["bytes_per_token"] == pytest.approx(figures["bytes_per_token_held_out"])
    assert 0 < found["renyi_efficiency"] < 1 < found["entropy_bits"] < 9
    unused = 299 - round(found["vocabulary_used"] * 299)
    assert found["tokens_unseen"] == unused <= found["tokens_rare"]


def test_superwords_and_a_memory_budget_come_from_the_recipe(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tokens(recipe(vocab_size=400, superwords=True), corpus, tmp_path / "tokens")
    tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json")
    assert any(b" " in tokenizer.token_bytes(token).strip() for token in range(400))
    build_tokens(recipe(vocab_size=265, max_ram=1000), corpus, tmp_path / "small")
    assert "commonest pieces" in capsys.readouterr().err
