"""A special token is named by the tokenizer: whatever numbers a vocabulary gives, shards, rows, validation and answers
are the same up to those numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.chat import render_chat, render_conversation, stop_tokens
from lmforge.tokens.loader import Loader
from lmforge.tokens.shards import Shards
from lmforge.tokens.special_tokens import END_OF_TEXT, guessed
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from lmforge.train.finetune import example_rows
from lmforge.train.validate import validation_rows
from tests.tokens.conftest import all_texts, recipe, text, write_corpus, write_documents

PLAIN = train_tokenizer([text(number) for number in range(40)], 300, chat=True)
SIZE = PLAIN.vocab_size


def renumbered(new: np.ndarray, tokenizer: Tokenizer = PLAIN) -> Tokenizer:
    """The same vocabulary, token t called new[t]."""
    file = json.loads(tokenizer.standard_json())
    file["model"]["vocab"] = {name: int(new[token]) for name, token in file["model"]["vocab"].items()}
    for token in file["added_tokens"]:
        token["id"] = int(new[token["id"]])
    return Tokenizer(json.dumps(file))


def order(seed: int, end: int | None = None) -> np.ndarray:
    """A random permutation of the ids; the end of text may be put to `end`."""
    new = np.random.default_rng(seed).permutation(SIZE)
    if end is not None:
        at = int(np.flatnonzero(new == end)[0])
        new[[0, at]] = new[[at, 0]]
    return new


@given(st.integers(0, 10**6), st.text(), st.sampled_from(["own", "library"]))
@settings(max_examples=40, deadline=None)
def test_any_numbers_give_the_same_tokens(seed: int, words: str, engine: str) -> None:
    new = order(seed)
    tokenizer = renumbered(new)
    if engine == "library":
        tokenizer = Tokenizer(described(tokenizer.standard_json(), "x", eos=[END_OF_TEXT]))
        assert tokenizer.library is not None
    assert tokenizer.encode(words) == new[PLAIN.encode(words)].tolist()
    assert tokenizer.end_of_text == new[PLAIN.end_of_text]
    assert tokenizer.encode_document(words) == new[PLAIN.encode_document(words)].tolist()
    assert tokenizer.decode(tokenizer.encode(words)) == PLAIN.decode(PLAIN.encode(words))
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": f"{words} x"}]
    assert render_chat(messages, tokenizer) == new[render_chat(messages, PLAIN)].tolist()
    plain, other = render_conversation(messages, PLAIN), render_conversation(messages, tokenizer)
    assert (other.tokens, other.counted) == (new[plain.tokens].tolist(), plain.counted)
    assert tokenizer.decode(other.tokens) == PLAIN.decode(plain.tokens)


def built(folder: Path, tokenizer: Tokenizer, corpus: Path) -> Path:
    folder.mkdir()
    build_tokens(recipe(vocab_size=SIZE), corpus, folder / "tokens", tokenizer)
    return folder / "tokens"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    rng = random.Random(3)

    def example(number: int) -> dict[str, Any]:
        messages = [
            {"role": "user", "content": text(rng.randrange(99))[: rng.randrange(9, 40)]},
            {"role": "assistant", "content": "iron"},
        ]
        return {"id": str(number), "text": "x", "source": "s", "genre": "chat", "meta": {"messages": messages}}

    return {
        "texts": write_corpus(folder / "texts", all_texts()),
        "examples": write_documents(
            folder / "examples", {split: [example(n) for n in range(40)] for split in ("train", "valid", "test")}
        ),
    }


@pytest.mark.parametrize("kind", ["texts", "examples"])
@pytest.mark.parametrize("end", [7, SIZE - 1, None])
def test_shards_rows_and_masks_are_the_same_up_to_the_numbers(
    tmp_path: Path, corpora: dict[str, Path], kind: str, end: int | None
) -> None:
    new = order(5 if end is None else end, end)
    tokenizer = renumbered(new)
    assert end is None or tokenizer.end_of_text == end
    plain, other = (built(tmp_path / name, each, corpora[kind]) for name, each in (("a", PLAIN), ("b", tokenizer)))
    mapped = np.append(new, -1)  # a target that does not count stays −1
    for split in ("train", "valid", "test"):
        one, two = Shards.open(plain, split), Shards.open(other, split)
        assert (two.read(0, two.tokens) == new[one.read(0, one.tokens)]).all()
        assert (one.documents == two.documents).all()
        assert (one.end, two.end) == (0, new[0])
    one, two = Shards.open(plain, "train"), Shards.open(other, "train")
    for packing in ("ring", "best_fit", "whole"):
        for step in (0, 3, 17):
            rows = [Loader(each, 160, 3, 5, packing).batch(step) for each in (one, two)]  # type: ignore[arg-type]
            padding = rows[0].targets < 0 if packing == "whole" else np.zeros((3, 160), bool)
            assert (rows[1].inputs == new[rows[0].inputs]).all()
            assert (rows[1].targets == mapped[rows[0].targets]).all()
            assert packing == "ring" or (rows[0].documents == rows[1].documents).all()
            assert padding.shape == (3, 160)
    one, two = Shards.open(plain, "valid"), Shards.open(other, "valid")
    for make in (lambda shards: validation_rows(shards, 16, 64), lambda shards: example_rows(shards, 160, 480, 1)):
        first, second = make(one), make(two)
        assert (second[0].numpy() == new[first[0].numpy()]).all()
        assert (second[1].numpy() == mapped[first[1].numpy()]).all()
    assert not (validation_rows(one, 16, 64)[1] == PLAIN.end_of_text).any()  # what comes next is not language


def test_answers_stop_where_the_tokenizer_says() -> None:
    new = torch.from_numpy(order(11))
    tokenizer = renumbered(new.numpy())
    shape = GPTConfig(vocab_size=SIZE, context=32, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32)
    model, other = GPT(shape), GPT(shape)
    model.initialise(2)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embed.weight[new] = model.embed.weight.clone()  # row new[t] is that of t
    for seed in range(6):
        prompt = PLAIN.encode_document(text(seed)[:9])
        told = []
        for network, of, ids in ((model, PLAIN, prompt), (other, tokenizer, new[prompt].tolist())):
            sampling = Sampling(max_tokens=40, temperature=0, stop_ids=(*stop_tokens(of), of.encode("iron")[0]))
            told.append([step[0] for step in decode(network, [ids], [sampling])])
        assert [drawn.token for drawn in told[1]] == [int(new[drawn.token]) for drawn in told[0]]
        assert [drawn.finish for drawn in told[1]] == [drawn.finish for drawn in told[0]]


@pytest.mark.parametrize("packing", ["ring", "best_fit", "whole"])
def test_after_a_document_comes_the_end_whatever_stands_before_the_next(
    tmp_path: Path, corpora: dict[str, Path], packing: str
) -> None:
    file = json.loads(PLAIN.standard_json())
    bos = SIZE
    file["added_tokens"].append({**file["added_tokens"][0], "id": bos, "content": "<s>"})
    tokenizer = Tokenizer(described(json.dumps(file), "x", eos=[END_OF_TEXT], bos="<s>", add_bos=True))
    assert (tokenizer.begin, tokenizer.end_of_text) == (bos, 0)
    shards = Shards.open(built(tmp_path / "bos", tokenizer, corpora["texts"]), "train")
    plain = Shards.open(built(tmp_path / "plain", PLAIN, corpora["texts"]), "train")
    assert (shards.read(0, shards.tokens)[shards.documents[:, 0]] == bos).all()
    for step in range(8):
        one, two = (Loader(each, 160, 3, 5, packing).batch(step) for each in (plain, shards))  # type: ignore[arg-type]
        assert (one.targets == two.targets).all()  # the end of a text, where plain shards have it too
        pads = (
            np.zeros_like(two.inputs, dtype=bool)
            if two.documents is None
            else two.documents == two.documents.max(1)[:, None]
        )
        same = one.inputs == two.inputs
        assert (same | ((one.inputs == 0) & (two.inputs == bos)) | pads).all()
        assert not (two.targets == bos).any()
    valid = Shards.open(tmp_path / "bos" / "tokens", "valid")
    assert not np.isin(validation_rows(valid, 16, 64)[1].numpy(), (0, bos)).any()


def test_ends_are_known_by_name() -> None:
    names = {"<unk>": 0, "<s>": 1, "</s>": 2}
    special = guessed(names, "x")
    assert (special.end_of_text, special.bos, special.pad) == (2, 1, None)
    assert special.name(2) == "</s>"
    assert special.name(None) == special.name(9) == ""
    with pytest.raises(InputError, match=r"^x: no special token ends a text; name it in eos_token_id"):
        guessed({"<unk>": 0}, "x")
    chat = guessed({"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}, "x", eos=[2])
    assert (chat.end_of_text, chat.eos, set(chat.stop)) == (0, 2, {0, 2})
