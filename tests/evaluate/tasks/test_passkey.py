"""Rows are as long as asked, with the key where asked; a model that copies finds every key, one that guesses none."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.evaluate.task import Context
from lmforge.evaluate.tasks.passkey import DEPTHS, FILLER, NAMES, Passkeys, lengths_up_to
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from tests.evaluate.conftest import VOCABULARY, score_of, tiny_model


@pytest.fixture(scope="module")
def makes() -> Passkeys:
    words = [*FILLER, *(f" The key of {name} is 0 1 2 3 4 5 6 7 8 9." for name in NAMES)]
    return Passkeys(train_tokenizer([text for text in words for _ in range(3)], 551, threads=1))


@given(length=st.integers(40, 400), depth=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_key_stands_at_its_depth(makes: Passkeys, length: int, depth: float, seed: int) -> None:
    row = makes.row(random.Random(seed), length, depth)
    assert row is not None
    assert len(row.tokens) == length
    text, key = makes.tokenizer.decode(row.tokens), makes.tokenizer.decode(row.answer)
    name = text.split(" The key of ")[-1].split()[0]
    fact = f" The key of {name} is{key}."
    assert text.count(fact) == 1
    assert text.endswith(f" The key of {name} is{key[:-2]}")
    before = len(makes.tokenizer.encode(text.split(fact)[0]))
    room = length - 2 * len(makes.tokenizer.encode(fact)) + 2
    assert abs(before - depth * room) <= 5  # sentences have up to 8 tokens, the key stands at the nearest end


def test_no_room(makes: Passkeys) -> None:
    assert makes.row(random.Random(0), 15, 0.5) is None
    assert makes.row(random.Random(0), 18, 0.5) is not None


def test_lengths() -> None:
    assert lengths_up_to(256) == [256]
    assert lengths_up_to(30_000) == [256, 1024, 4096, 16_384, 30_000]
    assert lengths_up_to(64) == [64]


class Copier(GPT):
    """Predicts what followed the last earlier occurrence of the five tokens before."""

    def hidden(self, tokens: torch.Tensor, *_: object, **__: object) -> torch.Tensor:  # type: ignore[override]
        out = torch.zeros(*tokens.shape, self.config.vocab_size)
        for row, ids in enumerate(tokens.tolist()):
            for at in range(len(ids) - 8, len(ids)):
                earlier = [i for i in range(at - 1, 3, -1) if ids[i - 4 : i + 1] == ids[at - 4 : at + 1]]
                out[row, at, ids[earlier[0] + 1] if earlier else 0] = 1.0
        return out


def test_a_copying_model_finds_every_key(base: Path, context_of: Callable[..., Context], makes: Passkeys) -> None:
    model = Copier(GPTConfig(551, 400, layers=1, d_model=16, heads=1, kv_heads=1, d_ff=16))
    model.head = torch.nn.Identity()  # type: ignore[assignment]
    context = context_of(model, "evaluate.items=20")
    context.tokenizer = makes.tokenizer
    score = score_of("passkey", context)
    assert (score.value, score.items) == (1.0, 40)
    assert score.extra["lengths"] == [256, 400]
    assert score.extra["accuracy"] == [[1.0] * DEPTHS] * 2
    assert score.low is not None
    assert score.low > 0.9
    assert sum(row["found"] for row in score.rows) == 40


def test_an_untrained_model_finds_none(context_of: Callable[..., Context]) -> None:
    score = score_of(
        "passkey",
        context_of(
            GPT(GPTConfig(VOCABULARY, 256, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=32)), "evaluate.items=60"
        ),
    )
    assert score.value == 0.0
    assert score.extra["keys_per_cell"] == 6


def test_too_short_a_context(context_of: Callable[..., Context]) -> None:
    score = score_of("passkey", context_of(tiny_model()))
    assert score.value is None
    assert "32 tokens has no room" in str(score.not_applicable)


def test_any_tokenizer_makes_rows(base: Path) -> None:
    row = Passkeys(Tokenizer.load(base / "tokens" / "tokenizer.json")).row(random.Random(0), 200, 0.9)
    assert row is not None
    assert len(row.tokens) == 200
