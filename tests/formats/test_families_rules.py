"""Rules that read several keys: as transformers 4 and 5 write them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.formats.families_keys import Rule
from lmforge.formats.families_rules import Heads, Rope, TwoRopes, Windows

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OURS = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_low": 1.0, "rope_high": 4.0, "rope_trained": 64}
BASE = {"rope_base": 500.0, "rotary_fraction": 1.0}
LONG = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [9.0, 9.0]}
REACH = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
TYPES = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (Heads(), {"num_attention_heads": 4}, {"heads": 4, "kv_heads": 4, "head_dim": 0}),
        (Heads(4, 2, 16), {}, {"heads": 4, "kv_heads": 2, "head_dim": 16}),
        (Heads(4, 2, 16), {"num_key_value_heads": 1, "head_dim": 8}, {"heads": 4, "kv_heads": 1, "head_dim": 8}),
        (Rope(), {"rope_theta": 500, "rope_scaling": None}, BASE),
        (Rope(), {"rope_theta": 500, "rope_scaling": LLAMA3}, BASE | OURS),
        (Rope(), {"rope_parameters": {**LLAMA3, "rope_theta": 500}}, BASE | OURS),
        (Rope(), {"rope_parameters": {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 1.0}}, BASE),
        (Rope("base", fraction="pct", default_fraction=0.25), {"base": 500}, BASE | {"rotary_fraction": 0.25}),
        (
            Rope(),
            {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 2}},
            BASE | {"rope_scaling": "linear", "rope_factor": 2.0},
        ),
        (
            Rope(),
            {"rope_theta": 500, "rope_scaling": LONG, **REACH},
            BASE | {"rope_divisors": (1.0, 2.0), "rope_magnitude": (4 / 3) ** 0.5},
        ),
        (TwoRopes(), {}, {"rope_base": 1e6, "rope_local_base": 1e4}),
        (
            TwoRopes(),
            {"rope_theta": 500, "rope_local_base_freq": 10, "rope_scaling": LLAMA3},
            {"rope_base": 500.0, "rope_local_base": 10.0, **OURS},
        ),
        (
            TwoRopes(),
            {"rope_parameters": {TYPES[0]: {**LLAMA3, "rope_theta": 500}, TYPES[1]: {"rope_theta": 10}}},
            {"rope_base": 500.0, "rope_local_base": 10.0, **OURS},
        ),
        (Windows(20), {"num_hidden_layers": 2}, {"attention": ("window",), "window": 20}),
        (Windows(20), {"num_hidden_layers": 2, "sliding_window": None}, {"attention": ("full",), "window": 256}),
        (Windows(20), {"num_hidden_layers": 2, "sliding_window": 64}, {"attention": ("full",), "window": 64}),
        (
            Windows(20, kept=True),
            {"num_hidden_layers": 2, "sliding_window": 64},
            {"attention": ("window",), "window": 64},
        ),
        (Windows(20, "on", by_layer=True), {"num_hidden_layers": 2}, {"attention": ("full",), "window": 256}),
        (
            Windows(20, "on", by_layer=True),
            {"num_hidden_layers": 3, "on": True, "max_window_layers": 1},
            {"attention": ("full", "window", "window"), "window": 20},
        ),
        (
            Windows(20, by_layer=True),
            {"num_hidden_layers": 4, "layer_types": TYPES * 2},
            {"attention": ("full", "window"), "window": 20},
        ),
        (
            Windows(20, by_layer=True, pattern=2),
            {"num_hidden_layers": 4},
            {"attention": ("window", "full"), "window": 20},
        ),
    ],
)
def test_keys_of_both_versions_are_read(rule: Rule, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert rule.read(theirs, 64) == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in ours.items()
    }


@pytest.mark.parametrize(
    ("rule", "theirs", "words"),
    [
        (Rope(), {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn'"),
        (Rope(), {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling 'llama3' without 'factor'"),
        (
            Rope(),
            {"rope_scaling": LONG, **REACH, "original_max_position_embeddings": 32},
            "rope_scaling.rope_type = 'longrope': .* give --context 32",
        ),
        (Rope(), {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (
            TwoRopes(),
            {"rope_parameters": {TYPES[1]: {"rope_type": "linear", "factor": 2}}},
            "rope_parameters.sliding_attention",
        ),
        (
            Windows(by_layer=True),
            {"num_hidden_layers": 1, "layer_types": ["linear_attention"]},
            r"layer_types: \['linear_att",
        ),
        (Windows(by_layer=True), {"num_hidden_layers": 3, "layer_types": TYPES}, "layer_types: 2"),
    ],
)
def test_what_ours_does_not_compute_is_named(rule: Rule, theirs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: {words}"):
        rule.read(theirs, 64)
