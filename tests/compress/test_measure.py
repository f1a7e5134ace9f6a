"""Figures of a model: formulas checked by counting, speeds positive, turns really taken."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from lmforge.compress.measure import in_turn, macs_per_token, measure, resident_bytes
from lmforge.compress.quantize import quantize
from lmforge.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=512, context=32, layers=2, d_model=64, heads=2, kv_heads=2, d_ff=256)


def test_macs_agree_with_counted_flops() -> None:
    model = GPT(CONFIG).eval()
    tokens = torch.zeros(1, CONFIG.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    linear = counter.get_flop_counts()["Global"][torch.ops.aten.mm] / 2 / CONFIG.context
    pairs = sum(range(1, CONFIG.context + 1)) / CONFIG.context  # keys that a token sees on average
    attention = CONFIG.layers * 2 * pairs * CONFIG.d_model
    assert abs(macs_per_token(model) - linear - attention) <= CONFIG.layers * CONFIG.d_model  # a half key more or less
    assert macs_per_token(quantize(model)[0]) == macs_per_token(model)


def test_resident_bytes_count_the_tied_matrix_as_often_as_it_lies_in_memory() -> None:
    model = GPT(CONFIG)
    rotations = CONFIG.context * CONFIG.head_width // 2 * 8
    assert resident_bytes(model) == sum(p.nbytes for p in model.parameters()) + rotations
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    table = CONFIG.vocab_size * CONFIG.d_model
    held = resident_bytes(quantize(model)[0])
    # the head's packed copy stands beside the table
    assert matrices + table < held < 1.2 * (matrices + table) + rotations


def test_models_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def rate(name: str) -> float:
        order.append(name)
        return 1e9 if len(order) <= 2 else float(len(order))

    medians = in_turn({"a": lambda: rate("a"), "b": lambda: rate("b")}, repetitions=3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert medians == {"a": 5.0, "b": 6.0}


def test_rounds_that_take_too_long_are_fewer() -> None:
    order: list[str] = []
    in_turn({"a": lambda: float(order.append("a") or 1)}, repetitions=3, limit=-1.0)
    assert order == ["a", "a"]  # the warm-up, and one that counts


def test_measure_gives_every_figure_of_every_model() -> None:
    model = GPT(CONFIG).eval()
    figures_of = measure({"original": model, "quantize": quantize(model)[0]}, seconds=0.2)
    assert list(figures_of) == ["original", "quantize"]
    for figures in figures_of.values():
        assert all(
            rate > 0 for rate in (*figures["decode_tokens_per_second"].values(), figures["prefill_tokens_per_second"])
        )
        assert figures["threads"] == torch.get_num_threads()
