"""The GPU's code, run on the CPU by the same operations: the bits of our kernels, and floats where integers fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmforge.compress import on_device
from lmforge.compress.grouped import GroupedLinear
from lmforge.compress.groups import round_groups
from lmforge.compress.int8 import QuantizedLinear, round_rows
from lmforge.compress.on_device import DeviceMatrix
from lmforge.kernels.reference import product


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_integers_give_the_bits_of_the_kernels(clip: float, tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    on_device._tell.cache_clear()
    generator = torch.Generator().manual_seed(tokens)
    weight, scale = round_rows(torch.randn(19, 37, generator=generator))
    bias, x = torch.randn(19, generator=generator), torch.randn(1, tokens, 37, generator=generator)
    y = DeviceMatrix(weight, scale, bias, clip)(x)
    shifted = (weight.short() + 128).to(torch.uint8)
    expected = product(x[0], shifted, 48, scale[:, None], 128, bias=bias, whole_row=True, clip=clip)
    assert torch.equal(y[0], expected)
    assert "on cpu matrices of 8 bits are multiplied by torch._int_mm" in capsys.readouterr().err


def test_without_an_integer_product_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_device._tell.cache_clear()

    def refuse(*_: Any) -> Any:
        raise RuntimeError("_int_mm_out_cuda not compiled for this platform\nmore")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    weight, scale = round_rows(torch.randn(6, 20))
    x = torch.randn(3, 20)
    whole = DeviceMatrix(weight, scale, None, 0.0)
    assert torch.allclose(whole(x), x @ (weight * scale[:, None]).t(), atol=1e-5)
    assert torch.equal(whole(x[:1]), whole(x[:1]))
    assert capsys.readouterr().err.count("refuses (_int_mm_out_cuda not compiled for this platform)") == 1


def test_layers_take_this_way_off_the_cpu() -> None:
    """On the device `meta`, which has shapes alone: nothing of the CPU's copy is multiplied there."""
    layer = QuantizedLinear(24, 16, bias=True)
    weight, scale = round_rows(torch.randn(16, 24))
    layer.load_state_dict({"weight": weight, "scale": scale, "bias": torch.zeros(16), "clip_range": torch.zeros(1)})
    layer.to("meta")
    assert layer(torch.empty(2, 3, 24, device="meta")).shape == (2, 3, 16)
    for unpack in ("kernel", "load", "fly"):
        grouped = GroupedLinear(16, 32, False, 4, 16, unpack=unpack)
        grouped.fill(round_groups(torch.randn(16, 32), 4, 16))
        assert grouped(torch.empty(3, 32, device="meta")).shape == (3, 16)
        held = grouped.parts_on(torch.device("meta"))
        assert all(part.is_meta for part in held)
        assert grouped.parts_on(torch.device("meta")) is held


def test_codes_become_the_same_numbers_on_a_device() -> None:
    grouped = GroupedLinear(16, 32, False, 4, 16, unpack="fly", offset="zero")
    grouped.fill(round_groups(torch.randn(16, 32), 4, 16))
    assert torch.equal(grouped.dense_of(grouped.parts_on(torch.device("cpu"))), grouped.dense())
