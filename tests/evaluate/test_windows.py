"""Every token once, with the context said; known answers; neighbours do not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.evaluate.task import Context
from lmforge.evaluate.windows import plan_windows, quick_bits_per_byte, score_documents
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.shards import Shards
from tests.evaluate.conftest import CONTEXT, VOCABULARY, score_of, tiny_model
from tests.tokens.conftest import write_documents


class Ring:
    """Tokens without files."""

    def __init__(self, tokens: int, seed: int = 0) -> None:
        self.ids = np.random.default_rng(seed).integers(1, VOCABULARY, tokens)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        assert 0 <= start <= start + length <= len(self.ids)
        return self.ids[start : start + length]


@given(st.integers(0, 400), st.integers(2, 60))
def test_every_token_is_predicted_once_with_half_a_context(tokens: int, context: int) -> None:
    times = [0] * tokens
    for window in plan_windows(0, tokens, context):
        assert 0 <= window.start < window.scored <= window.stop < tokens
        assert window.width <= context
        for position in range(window.scored, window.stop + 1):
            times[position] += 1
            assert position - window.start >= min(position, context // 2)
    assert times == [0, *[1] * (tokens - 1)][:tokens]


def test_the_cost_is_near_twice_the_tokens() -> None:
    assert sum(window.width for window in plan_windows(0, 10_000, 256)) < 2.02 * 10_000


def test_each_token_is_scored_as_by_itself() -> None:
    model, ring = tiny_model(2), Ring(90)
    scores = score_documents(model, ring, np.array([[0, 90]]), CONTEXT)
    with torch.inference_mode():
        for place in (0, 1, 30, 31, 32, 48, 60, 88):
            seen = int(scores.seen[place])
            given = torch.from_numpy(ring.ids[place + 1 - seen : place + 1])[None]
            expected = -torch.log_softmax(model(given)[0, -1], -1)[int(ring.ids[place + 1])]
            assert scores.nats[place] == pytest.approx(float(expected), abs=1e-4)
            assert scores.token[place] == ring.ids[place + 1]
            assert seen == place + 1 if place < CONTEXT else CONTEXT // 2 <= seen <= CONTEXT


def test_neither_batches_nor_neighbours_matter() -> None:
    model, ring = tiny_model(3), Ring(400)
    table = np.array([[0, 90], [90, 2], [92, 1], [93, 33], [126, 200], [326, 17]])
    whole = score_documents(model, ring, table, CONTEXT).bits_of_documents(len(table))
    single = score_documents(model, ring, table, CONTEXT, batch_tokens=1).bits_of_documents(len(table))
    alone = [score_documents(model, ring, table[[row]], CONTEXT).bits_of_documents(1)[0] for row in range(len(table))]
    assert whole == pytest.approx(single, rel=1e-5)
    assert whole == pytest.approx(np.array(alone), rel=1e-5)
    assert whole[2] == 0
    assert np.isfinite(whole).all()


def test_documents_do_not_see_each_other() -> None:
    model, ring, other = tiny_model(3), Ring(100), Ring(100, seed=1)
    other.ids[50:] = ring.ids[50:]
    table = np.array([[0, 50], [50, 50]])
    first, second = (score_documents(model, r, table, CONTEXT).bits_of_documents(2) for r in (ring, other))
    assert first[0] != pytest.approx(second[0], rel=1e-4)
    assert first[1] == pytest.approx(second[1], rel=1e-6)


def test_the_quick_score_is_bounded_and_agrees_on_everything(base: Path, context_of: Callable[..., Context]) -> None:
    score = score_of("bits_per_byte", context_of(tiny_model(5), f"tokens.context={CONTEXT * 8}"))
    assert quick_bits_per_byte(tiny_model(5), base / "tokens", "test", CONTEXT * 8, 10**9) == pytest.approx(
        score.value, rel=1e-5
    )
    shards = Shards.open(base / "tokens", "valid")
    quick = [
        quick_bits_per_byte(tiny_model(seed=None), base / "tokens", "valid", CONTEXT, most) for most in (40, 300, 300)
    ]
    assert quick[1] == quick[2] != quick[0]
    mean = math.log2(VOCABULARY) * (shards.tokens - len(shards.documents)) / shards.bytes
    assert 0.5 * mean < quick[1] < 2 * mean


def with_spans(base: Path, recipe: Recipe, folder: Path, share: float) -> Path:
    """The texts of the tiny corpus as shards in which the last `share` of each document counts."""
    splits = {split: [*read_documents(base / "corpus", split)] for split in ("train", "valid", "test")}
    for documents in splits.values():
        for document in documents:
            length = len(document["text"])
            document["meta"] = {"loss_spans": [[length - int(length * share), length]]}
    write_documents(folder / "corpus", splits)
    build_tokens(recipe, folder / "corpus", folder / "tokens")
    return folder / "tokens"


def test_the_quick_score_counts_what_the_loss_counts(base: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Questions are read, answers are scored: the same bits and bytes as one document after another, token by token."""
    tokens_dir = with_spans(base, recipe, tmp_path, 0.3)
    shards, tokenizer = Shards.open(tokens_dir, "valid"), Tokenizer.load(tokens_dir / "tokenizer.json")
    context = int(shards.documents[:, 1].max())
    model = GPT(GPTConfig(VOCABULARY, context, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=64))
    model.initialise(5)
    bits = size = 0.0
    for start, length in shards.documents[:, :2].tolist():
        ids = torch.from_numpy(shards.read(start, length))
        with torch.inference_mode():
            nats = -model.eval()(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        for place, token in enumerate(ids[1:].tolist()):
            if shards.counts(start + 1 + place, 1)[0]:
                bits += float(nats[place]) / math.log(2)
                size += len(tokenizer.token_bytes(token))
    assert 0 < size < 0.4 * shards.bytes
    quick = quick_bits_per_byte(model, tokens_dir, "valid", context, 10**9)
    assert quick == pytest.approx(bits / size, rel=1e-5)


def test_a_split_in_which_nothing_counts_cannot_judge(base: Path, recipe: Recipe, tmp_path: Path) -> None:
    tokens_dir = with_spans(base, recipe, tmp_path, 0.0)
    with pytest.raises(InputError, match="no token of the valid split's sample counts"):
        quick_bits_per_byte(tiny_model(5), tokens_dir, "valid", CONTEXT, 1000)
