"""Columns with large inputs stay in fp32: less is lost, and the model is restored, counted and given as numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from lmforge.compress.outliers import OutlierLinear
from lmforge.compress.quantize import quantize, restore
from lmforge.errors import InputError
from lmforge.formats.native import model_tensors
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import relative, rows, small_model, tokens

KEPT = QuantizeStep(outliers=2, activations="token")


def towering() -> OutlierLinear:
    """A layer of 24 inputs and 16 outputs, of which columns 3 and 20 are kept."""
    layer = OutlierLinear(24, 16, bias=True, signed=True, outliers=2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (16, 24), generator=generator, dtype=torch.int8)
    columns = torch.tensor([3, 20])
    layer.load_state_dict(
        {
            "weight": weight.index_fill(1, columns, 0),
            "scale": torch.rand(16, generator=generator) * 0.01,
            "clip_range": torch.zeros(1),
            "bias": torch.randn(16, generator=generator),
            "columns": columns,
            "kept": torch.randn(2, 16, generator=generator),
        }
    )
    return layer


def test_inputs_that_tower_do_not_coarsen_the_others() -> None:
    layer, x = towering(), torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    x[:, [3, 20]] *= 1000
    true = torch.nn.functional.linear(x, layer.dense_weight(), layer.bias)
    rest = x.clone()
    rest[:, [3, 20]] = 0
    small = torch.nn.functional.linear(rest, layer.dense_weight())
    assert float((layer(x) - true).norm()) < 0.03 * float(small.norm())
    assert layer.macs_per_token() == 24 * 16 + 2 * 16
    assert layer.bit_operations() == 24 * 16 * 64 + 2 * 16 * 1024
    assert layer.kernel_matrix() is None


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    layer, x = towering(), torch.randn(37, 24, generator=torch.Generator().manual_seed(2))
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(len(x)))


@torch.inference_mode()
def test_the_model_is_restored_and_closer_than_without() -> None:
    model = small_model()
    small, details = quantize(model, [rows(seed=1)], settings=KEPT)
    assert details["entry"]["outliers"] == 2
    again = restore(small_model(), details["entry"], model_tensors(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(tokens()), small(tokens()))
    true = model(tokens())
    plain = quantize(model, [rows(seed=1)], settings=QuantizeStep(activations="token"))[0]
    assert relative(small(tokens()), true) < relative(plain(tokens()), true)
    name = next(name for name, layer in small.named_modules() if isinstance(layer, OutlierLinear))
    broken = model_tensors(small) | {f"{name}.columns": torch.tensor([0, 10**6])}
    with pytest.raises(InputError, match="columns: not columns"):
        restore(copy.deepcopy(model), details["entry"], broken)
