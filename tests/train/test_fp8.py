"""8-bit products: close to the exact ones, in the value and both gradients, and a network learns with them. Run on a
CPU, which computes the same products slowly; where a run asks for fp8 on one, it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmforge.errors import InputError
from lmforge.formats.native import load_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import load_recipe
from lmforge.train import fp8, step, validate
from lmforge.train.fp8 import BACKWARD, FORWARD, Linear8, product, quantised, require, use_fp8
from lmforge.train.loop import train


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("kind", "error"), [(FORWARD, 0.04), (BACKWARD, 0.08)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_quantised_keeps_the_leading_bits_at_any_size(kind: torch.dtype, error: float, size: float) -> None:
    x = torch.randn(64, 64) * size
    values, scale = quantised(x, kind)
    assert relative(values.float() * scale, x) < error
    assert float(values.float().abs().max()) == torch.finfo(kind).max


def test_zeros_stay_zeros() -> None:
    values, scale = quantised(torch.zeros(16, 16), FORWARD)
    assert torch.isfinite(scale)
    assert not values.float().any()


Scaled = tuple[torch.Tensor, torch.Tensor]


def emulated(a: Scaled, b: Scaled, out: torch.dtype) -> torch.Tensor:
    """`product` from the same 8-bit numbers, multiplied in float32: a hundred times as fast on a CPU."""
    return (a[0].float() @ b[0].float().t() * (a[1] * b[1])).to(out)


def test_the_emulation_is_the_product() -> None:
    a, b = quantised(torch.randn(32, 48), BACKWARD), quantised(torch.randn(16, 48), FORWARD)
    assert relative(product(a, b, torch.bfloat16).float(), emulated(a, b, torch.float32)) < 0.005


@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_near_the_exact_ones(bias: bool) -> None:
    torch.manual_seed(0)
    exact = torch.nn.Linear(64, 48, bias=bias)
    x = torch.randn(2, 32, 64)
    layer = Linear8(exact)
    assert layer.weight is exact.weight
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    results = []
    for module, given in ((exact, one), (layer, other)):
        exact.zero_grad()
        y = module(given)
        F.cross_entropy(y.float().flatten(0, 1), torch.arange(64) % 48).backward()
        results.append((y.detach().float(), given.grad, exact.weight.grad.clone()))
    for a, b, most in zip(results[1], results[0], (0.05, 0.1, 0.1), strict=True):
        assert 0 < relative(a, b) < most


def test_rows_that_do_not_fit_are_computed_as_they_are() -> None:
    exact = torch.nn.Linear(32, 32)
    x = torch.randn(3, 32)
    assert torch.equal(Linear8(exact)(x), exact(x))


def test_only_blocks_matrices_that_fit_are_changed() -> None:
    model = GPT(GPTConfig(260, 32, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=40))
    names = {name for name, _ in model.named_parameters()}
    assert use_fp8(model) == 4  # d_ff is no multiple of 16
    assert {name for name, _ in model.named_parameters()} == names
    assert type(model.head) is torch.nn.Linear


def test_a_cpu_and_an_old_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError,
        match=r"train\.precision: 'fp8' needs a GPU of compute capability 8\.9 or more, and this is a CPU; use 'auto'",
    ):
        require(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    with pytest.raises(InputError, match=r"and this one has 8\.0"):
        require(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    require(torch.device("cuda"))


def test_a_run_asks_before_anything_else(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'fp8' needs a GPU"):
        train(
            load_recipe(tiny_run / "recipe.toml", ["train.precision=fp8"]),
            tiny_run / "tokens",
            tmp_path / "t",
            tmp_path / "m",
        )


def test_it_learns_as_in_float32_and_leaves_an_ordinary_model(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "require", lambda _device: None)
    for module in (step, validate):
        monkeypatch.setattr(module, "autocast", lambda _precision, _device: torch.autocast("cpu", torch.bfloat16))
    used: list[torch.dtype] = []
    monkeypatch.setattr(fp8, "product", lambda a, b, out: used.append(a[0].dtype) or emulated(a, b, out))
    results = {}
    for precision in ("fp32", "fp8"):
        recipe = load_recipe(tiny_run / "recipe.toml", [f"train.precision={precision}", "train.steps=40"])
        results[precision] = train(recipe, tiny_run / "tokens", tmp_path / precision, tmp_path / f"{precision}m")
    assert {FORWARD, BACKWARD} <= set(used)
    assert results["fp8"]["valid_bits_per_byte"] == pytest.approx(results["fp32"]["valid_bits_per_byte"], rel=0.03)
    assert type(load_model(tmp_path / "fp8m").blocks[0].ff.up) is torch.nn.Linear
    assert json.loads((tmp_path / "fp8" / "ensemble.json").read_text())["candidates"]
