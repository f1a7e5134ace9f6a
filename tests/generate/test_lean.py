"""A step in one call gives what the modules give, for every shape of block that it takes, and leaves the same cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lmforge.compress.quantize import quantize
from lmforge.compress.sparse_input import SparseInput
from lmforge.generate.continuation import prefill, rows_multiple
from lmforge.generate.decode import Sampling, decode
from lmforge.generate.lean import lean_of, next_logits
from lmforge.kernels.build import library, path_taken
from lmforge.model.config import LayerShape
from lmforge.model.gpt import GPT
from tests.generate.test_continuation import answers, companies, network, requests

pytestmark = pytest.mark.skipif(library() is None, reason=path_taken())
THIN = LayerShape(heads=2, kv_heads=1, d_ff=96, qkv_rank=8, up_rank=8, down_rank=4)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama": {"heads": 4, "kv_heads": 2, "activation": "swiglu", "norm": "rmsnorm", "d_ff": 100},
    "narrow heads": {"d_model": 72, "heads": 4, "kv_heads": 2, "qk_norm": True, "activation": "geglu"},
    "norms of all heads": {"heads": 4, "qk_norm_full": True, "norm": "layernorm", "biases": True, "activation": "gelu"},
    "windows": {"attention": ("window", "full"), "window": 5, "rope_local_base": 100.0},
    "learned positions": {"positions": "learned", "activation": "gelu_tanh", "norm": "layernorm"},
    "both norms": {"norm_placement": "both", "norm_offset": 1.0, "embedding_scale": 3.0, "attention_scale": 0.3},
    "norms after": {"norm_placement": "post", "activation": "relu2", "tied": False},
    "parallel": {"parallel_residual": True, "rotary_fraction": 0.5, "activation": "gelu"},
    "n-grams": {"ngram_rows": 32},
    "layers that differ": {
        "layer_shapes": (THIN, LayerShape(0, 0, 64), LayerShape(2, 2, 0)),
        "layers": 3,
        "kv_heads": 2,
    },
}


def harder(**changes: Any) -> GPT:
    """Every part matters: gains and biases away from their beginning, large weights."""
    model = network(**changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(parameter * 4 if parameter.ndim == 2 else drawn + 0.5 if "norm" in name else drawn - 0.5)
    return model


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [200, 3], [17]]


@torch.inference_mode()
def compare(model: GPT, tolerance: float, steps: int = 9) -> None:
    lean = lean_of(model)
    assert lean is not None
    (_, cache), (_, other) = (prefill(model, PROMPTS, 24) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(300, (3,), generator=generator)
        reached, expected = lean.step(tokens, cache), model(tokens[:, None], other)[:, -1]
        assert float((reached - expected).norm() / expected.norm()) < tolerance
        assert cache.lengths.tolist() == other.lengths.tolist()
        assert cache.recent.tolist() == other.recent.tolist()
        assert cache.extent == other.extent
    for number, layer in cache.layers.items():
        there = other.layers[number].store[..., :-1, :].float()  # type: ignore[attr-defined]
        here = layer.store[..., :-1, :].float()  # type: ignore[attr-defined]
        assert float((here - there).norm() / there.norm()) < max(tolerance, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_gives_what_the_modules_give(shape: str) -> None:
    compare(harder(**SHAPES[shape]), 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_texts_are_those_of_the_modules(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = harder(**SHAPES["llama"])
    monkeypatch.setattr("lmforge.generate.lean.BYTES_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lean = answers(model, dict(enumerate(requests(2))))
        monkeypatch.setattr("lmforge.generate.lean.lean_of", lambda model: None)
        modules = answers(model, dict(enumerate(requests(2))))
    finally:
        torch.set_num_threads(before)
    assert [[token for token, *_ in said] for said in lean.values()] == [
        [token for token, *_ in said] for said in modules.values()
    ]


@pytest.mark.parametrize("form", ["floats", "int8", "8-bit cache"])
def test_a_row_has_the_same_bits_in_any_company(form: str) -> None:
    model = harder(**SHAPES["llama"])
    if form == "int8":
        model = quantize(model)[0]
    if form == "8-bit cache":
        model.cache_dtype = torch.int8
    assert rows_multiple(model) == 1
    every = dict(enumerate(requests(6)))
    alone = {n: answers(model, {n: request}, batch_invariant=True)[n] for n, request in every.items()}
    for company in companies(len(every)):
        chosen = {n: every[n] for n in company}
        assert answers(model, chosen, batch_invariant=True) == {n: alone[n] for n in company}


def test_int8_and_the_8_bit_cache_are_those_of_the_modules() -> None:
    small = quantize(harder(**SHAPES["llama"]))[0]
    compare(small, 0.03)
    model = harder(**SHAPES["windows"])
    model.cache_dtype = torch.int8
    compare(model, 2e-3)


@pytest.mark.parametrize("settings", [{"threshold": 0.2}, {"count": 9}])
def test_sparse_inputs_are_those_of_the_modules(settings: dict[str, Any]) -> None:
    for quantised in (False, True):
        model = harder(**{**SHAPES["plain"], "activation": "relu"})
        model = quantize(model)[0] if quantised else model
        for block in model.blocks:
            assert block.ff is not None
            block.ff.down = SparseInput(block.ff.down, **settings)
        compare(model, 0.02 if quantised else 1e-5)


def test_changed_weights_are_seen() -> None:
    model = harder(**SHAPES["llama"])
    first = lean_of(model)
    assert lean_of(model) is first
    with torch.no_grad():
        model.blocks[0].ff.up.weight.mul_(2)  # type: ignore[union-attr, operator]
        model.norm.weight.add_(1.0)  # type: ignore[union-attr]
    assert lean_of(model) is not first
    compare(model, 1e-5)
    model.blocks[1].attention.out = nn.Linear(64, 64, bias=False)  # type: ignore[union-attr]
    compare(model, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": ("sparse",), "window": 8, "stride": 4, "pool": 4},
        {"attention": ("lsh",)},
        {"attention": ("linear",)},
        {"experts": 4, "experts_active": 2},
    ],
)
def test_what_the_step_has_not_goes_module_by_module(changes: dict[str, Any]) -> None:
    model = network(**changes)
    assert lean_of(model) is None
    assert len(list(decode(model, [[1, 2]], [Sampling(max_tokens=3, temperature=0)]))) == 3


@torch.inference_mode()
def test_hooks_other_types_and_training_go_module_by_module() -> None:
    model = network()
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    assert lean_of(model) is None
    handle.remove()
    assert lean_of(model) is not None
    assert lean_of(model.train()) is None
    assert lean_of(network().double()) is None
    _, cache = prefill(model.eval(), [[1, 2]] * 17, 24)  # more rows of floats than it is for
    assert next_logits(model, torch.ones(17, dtype=torch.long), cache).shape == (17, 300)
