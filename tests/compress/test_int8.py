"""int8 layers: what the formula says, on every kernel, independent of their neighbours in the batch."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.compress import int8
from lmforge.compress.int8 import QuantizedLinear, int8_engine, round_rows
from lmforge.kernels.reference import product
from tests.compress.conftest import relative


def small_linear(signed: bool = True, clip_range: float = 0.0) -> QuantizedLinear:
    layer = QuantizedLinear(64, 32, bias=True, signed=signed)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=generator)
    bias = torch.randn(32, generator=generator)
    scale = torch.rand(32, generator=generator) + 0.1
    layer.load_state_dict({"weight": weight, "scale": scale, "bias": bias, "clip_range": torch.tensor([clip_range])})
    return layer


@pytest.mark.parametrize("clip_range", [0.0, 2.5])
@torch.inference_mode()
def test_a_token_does_not_depend_on_its_neighbours(clip_range: float) -> None:
    layer = small_linear(clip_range=clip_range)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 16)[:, None]
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


@pytest.mark.skipif("qnnpack" not in torch.backends.quantized.supported_engines, reason="torch has no qnnpack here")
@pytest.mark.parametrize("signed", [True, False])
@torch.inference_mode()
def test_no_neighbour_changes_the_range_of_a_kernel_that_finds_its_own(
    signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "library", lambda: None)
    monkeypatch.setattr(int8, "int8_engine", lambda: "qnnpack")
    layer = small_linear(signed=signed)
    x = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))  # alone, the first rows have no negative side
    if signed:
        x[3:] -= 0.5
    assert layer.engine == "qnnpack"
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), signed=st.booleans(), rows=st.integers(1, 5), extreme=st.booleans())
def test_the_kernel_computes_what_the_formula_says(seed: int, signed: bool, rows: int, extreme: bool) -> None:
    """Exact integers times scales; all-largest values are where a saturating kernel would be wrong."""
    for own in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not own:
                patch.setattr(int8, "library", lambda: None)
            computes_what_the_formula_says(seed, signed, rows, extreme)


def computes_what_the_formula_says(seed: int, signed: bool, rows: int, extreme: bool) -> None:
    torch.manual_seed(seed)
    layer = small_linear(signed)
    if extreme:
        layer.pack(torch.full((32, 64), 127, dtype=torch.int8), layer.scale)
    x = torch.ones(rows, 64) if extreme else torch.randn(rows, 64) * 10
    x = x if signed else x.abs()
    weight, scale = layer.unpacked()
    largest = x.abs().amax(1, keepdim=True)
    levels = 63 if signed and layer.engine != int8.OWN else 127
    whole = (x / largest * levels).round()
    expected = (whole.double() @ weight.double().t()).float() * scale * largest / levels + layer.bias
    if layer.engine in (int8.OWN, "fbgemm"):
        # one unit of rounding apart at most, where x/m falls on the border between two levels
        assert (layer(x) - expected).abs().max() <= 1e-4 * expected.abs().max() + float(
            (127 * scale.max() * largest.max()) / levels
        )
    if layer.engine == int8.OWN:
        code = (weight.short() + 128).to(torch.uint8)
        assert torch.equal(layer(x), product(x, code, 64, scale[:, None], 128, bias=layer.bias, whole_row=True))
    assert relative(layer(x), x @ (weight.float() * scale[:, None]).t() + layer.bias) < (1e-5 if extreme else 0.05)


@torch.inference_mode()
def test_rows_of_zeros_give_the_bias() -> None:
    for signed, clip_range in ((True, 0.0), (False, 0.0), (True, 2.0), (False, 2.0)):
        layer = small_linear(signed, clip_range)
        assert torch.allclose(layer(torch.zeros(3, 64)), layer.bias.expand(3, -1))


@torch.inference_mode()
def test_what_lies_beyond_the_reach_is_cut() -> None:
    x = torch.linspace(-8, 8, 64)[None]
    for signed, low in ((True, -2.0), (False, 0.0)):
        layer = small_linear(signed, clip_range=2.0)
        assert torch.equal(layer(x), layer(x.clamp(low, 2.0)))
        weight, scale = layer.unpacked()
        true = x.clamp(low, 2.0) @ (weight.float() * scale[:, None]).t() + layer.bias
        assert relative(layer(x), true) < 0.05


@pytest.mark.parametrize("engines", [["qnnpack"], []])
def test_engine_is_chosen_among_those_there_are(engines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = [engine for engine in engines if engine in torch.backends.quantized.supported_engines]
    monkeypatch.setattr(torch.backends.quantized, "_supported_engines", None, raising=False)
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", there)
    int8_engine.cache_clear()
    assert int8_engine() == (there[0] if there else None)
    monkeypatch.undo()
    int8_engine.cache_clear()


def test_a_saturating_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    true = int8._multiply
    monkeypatch.setattr(int8, "_multiply", lambda *a, **k: true(*a, **k) * 0.9)
    int8_engine.cache_clear()
    assert int8_engine() is None
    monkeypatch.undo()
    int8_engine.cache_clear()


def test_a_layer_goes_to_another_process_as_it_is() -> None:
    layer = small_linear()
    x = torch.randn(2, 64)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_scales_of_least_error_cut_the_largest_weights() -> None:
    weight = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))

    def error(least: bool) -> torch.Tensor:
        whole, scale = round_rows(weight, least)
        return (whole * scale[:, None] - weight).square().sum(1)

    assert (error(True) < error(False)).all()
