"""Small models to export: networks in which every part matters, with a tokenizer that was learned for conversations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.bpe import Tokenizer, train_on_pieces

PIECES = [(b" the", 30), (b" king", 20), (b" said", 10), (b"def", 9), (b" return", 8)]
VOCABULARY = 280
SMALL = {"vocab_size": VOCABULARY, "context": 48, "layers": 2, "d_model": 32, "heads": 4, "kv_heads": 2, "d_ff": 64}
# what the recipes in recipes/ make, and what published architectures are like
LAPTOP = {"norm": "layernorm", "activation": "relu2", "qk_norm": True, "kv_heads": 4}
GPU = {"activation": "relu2", "qk_norm": True, "kv_heads": 4}
LLAMA = {"activation": "swiglu", "tied": False, "norm_eps": 1e-5}
GPT2 = {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "biases": True, "kv_heads": 4}


@functools.cache
def chat_tokenizer(chat: bool = True) -> Tokenizer:
    return train_on_pieces(PIECES, VOCABULARY - (0 if chat else 4), chat=chat)


def network(seed: int = 0, **changes: Any) -> GPT:
    """One with numbers away from where they begin."""
    model = GPT(GPTConfig(**{**SMALL, **changes}))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.05, generator=generator))
    return model.eval()


def small(seed: int = 0, **changes: Any) -> LoadedModel:
    return LoadedModel(network(seed, **changes), chat_tokenizer(), "small", Path("small"))
