"""Keys of theirs ↔ fields of ours, one at a time."""

from __future__ import annotations

from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.formats.families_keys import REQUIRED, Always, Equal, Key, Only, Power, Rule, Same, Times
from lmforge.model.config import GPTConfig

CONFIG = GPTConfig(
    vocab_size=9,
    context=8,
    layers=3,
    d_model=16,
    heads=2,
    kv_heads=2,
    d_ff=6,
    qkv_biases=True,
    out_biases=True,
    attention_scale=0.25,
)


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (Key("layers", "n"), {"n": 3}, {"layers": 3}),
        (
            Key("activation", "act", REQUIRED, {"silu": "swiglu", "ReLU": "relu"}),
            {"act": "ReLU"},
            {"activation": "relu"},
        ),
        (Same(("heads", "kv_heads"), "n_head"), {"n_head": 2}, {"heads": 2, "kv_heads": 2}),
        (Same(("qkv_biases", "out_biases"), "bias"), {"bias": True}, {"qkv_biases": True, "out_biases": True}),
        (Times("d_ff", "n_inner", 4, "width"), {"n_inner": 6, "width": 16}, {"d_ff": 6}),
        (Power("attention_scale", "scalar", -0.5), {"scalar": 16}, {"attention_scale": 0.25}),
        (Always({"norm": "rmsnorm"}), {}, {"norm": "rmsnorm"}),
        (Only({"cap": (None,)}), {}, {}),
        (Equal("inner", "width"), {"inner": 16, "width": 16}, {}),
    ],
)
def test_a_rule_reads_what_it_writes(rule: Rule, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert rule.read(theirs, 8) == ours
    written = rule.write(CONFIG)
    assert written.items() <= theirs.items()
    assert rule.read(theirs | written, 8) == ours


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (Key("layers", "n", 5), {}, {"layers": 5}),
        (Key("layers", "n", 5), {"n": None}, {"layers": 5}),
        (Times("d_ff", "n_inner", 4, "width"), {"n_inner": None, "width": 16}, {"d_ff": 64}),
        (Power("attention_scale", "scalar", -0.5, 4), {}, {"attention_scale": 0.5}),
        (Only({"cap": (None, 0)}), {"cap": 0}, {}),
        (Equal("inner", "width"), {"width": 16}, {}),
    ],
)
def test_what_is_missing_follows(rule: Rule, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert rule.read(theirs, 8) == ours


@pytest.mark.parametrize(
    ("rule", "theirs", "words"),
    [
        (Key("layers", "n"), {}, "n is missing"),
        (Key("activation", "act", "silu", {"silu": "swiglu"}), {"act": "mish"}, "act = 'mish': ours computes silu"),
        (Only({"cap": (None,)}), {"cap": 30.0}, "cap = 30.0"),
        (Equal("inner", "width"), {"inner": 8, "width": 16}, "inner = 8"),
        (Same(("heads",), "n_head"), {}, "n_head is missing"),
    ],
)
def test_what_ours_does_not_compute_is_named(rule: Rule, theirs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: {words}"):
        rule.read(theirs, 8)


def test_a_derived_field_is_not_written() -> None:
    rule = Power("embedding_scale", "hidden_size", 0.5, derived=True)
    assert rule.read({"hidden_size": 16}, 8) == {"embedding_scale": 4.0}
    assert not rule.write(CONFIG)
