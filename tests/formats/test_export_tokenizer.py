"""transformers reads the tokenizer and its template as we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmforge.formats.export_tokenizer import chat_template, write_tokenizer
from lmforge.formats.loaded import LoadedModel
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.formats.exporting import chat_tokenizer, network
from tests.tokens.test_tokenizer_json import vocabulary

transformers = pytest.importorskip("transformers")
OWN_TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the king said:\n\n def"},
    {"role": "assistant", "content": " return"},
    {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "king?"}]},
]
TEXTS = ["the king said", "def f(x):\n    return x", "你好 🙂", "", " \t\n  spaces ", "\x00\x7f", "it's 12,345.67"]


def of_others() -> Tokenizer:
    return Tokenizer(described(json.dumps(vocabulary()), "tokenizer.json", chat_template=OWN_TEMPLATE))


TOKENIZERS = {"tokens": chat_tokenizer, "transcript": lambda: chat_tokenizer(False), "theirs": of_others}


def written(tmp_path: Path, tokenizer: Tokenizer) -> tuple[LoadedModel, Any]:
    model = network(vocab_size=tokenizer.vocab_size)
    loaded = LoadedModel(model, tokenizer, "small", Path("small"))
    write_tokenizer(loaded, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return loaded, transformers.AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_and_texts(tmp_path: Path, kind: str) -> None:
    loaded, theirs = written(tmp_path, TOKENIZERS[kind]())
    for text in TEXTS:
        ids = loaded.tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text
    assert "lmforge" not in json.loads((tmp_path / "tokenizer.json").read_text())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_conversations(tmp_path: Path, kind: str) -> None:
    loaded, theirs = written(tmp_path, TOKENIZERS[kind]())
    asks = kind != "theirs"  # that template has no generation prompt
    for turns in (CONVERSATION[:2], CONVERSATION) if asks else (CONVERSATION[:2],):
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert ids == loaded.conversation(turns)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens(tmp_path: Path, kind: str) -> None:
    loaded, theirs = written(tmp_path, TOKENIZERS[kind]())
    special = loaded.tokenizer.special_tokens
    assert theirs.eos_token_id == special.eos if special.eos is not None else special.end_of_text
    assert theirs.bos_token_id == (None if kind == "theirs" else loaded.tokenizer.begin)
    assert theirs.model_max_length == loaded.context
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["eos_token_id"] == list(loaded.stop_ids)
    assert set(special.names) <= set(theirs.all_special_tokens)


def test_the_models_own_template_is_kept() -> None:
    assert chat_template(of_others()) == OWN_TEMPLATE


def test_more_keys_of_generation(tmp_path: Path) -> None:
    loaded = LoadedModel(network(), chat_tokenizer(), "small", Path("small"))
    write_tokenizer(loaded, tmp_path, use_cache=False)
    assert json.loads((tmp_path / "generation_config.json").read_text())["use_cache"] is False
