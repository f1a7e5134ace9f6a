"""Products of the kernels: bit by bit what integers give, for all instructions, in any batch, on any threads."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lmforge.kernels import build, matrix
from lmforge.kernels.matrix import WIDTHS, Packed
from lmforge.kernels.reference import float_product, product

SHAPES = ((1, 1, 16), (19, 40, 16), (33, 70, 32), (16, 64, 64), (5, 9, 9))  # (O, I, group), with rests of all kinds


@pytest.fixture(params=["native", "avx2", "plain"], autouse=True)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each set of instructions in turn."""
    monkeypatch.setenv(build.VARIABLE, request.param)
    if build.library() is None:
        pytest.skip(build.path_taken())
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)


def drawn(
    rows: int, width: int, group: int, bits: int, offsets: str, seed: int = 0
) -> tuple[Packed, dict[str, object]]:
    generator = torch.Generator().manual_seed(seed)
    groups = -(-width // group)
    parts: dict[str, object] = {
        "code": torch.randint(2**bits, (rows, width), dtype=torch.uint8, generator=generator),
        "scale": torch.rand(rows, groups, generator=generator).half(),
    }
    if offsets == "zero":
        parts["zero"] = torch.randint(2**bits, (rows, groups), dtype=torch.uint8, generator=generator)
    elif offsets == "least":
        parts["least"] = torch.randn(rows, groups, generator=generator).half()
    else:
        parts["zero"] = 2 ** (bits - 1)
    parts["bias"] = torch.randn(rows, generator=generator) if seed % 2 else None
    parts["channel"] = torch.rand(width, generator=generator) + 0.5 if offsets == "least" else None
    code, scale, rest = parts["code"], parts["scale"], {k: v for k, v in parts.items() if k not in ("code", "scale")}
    assert isinstance(code, Tensor)
    assert isinstance(scale, Tensor)
    return matrix.codes(code, bits, group, scale, **rest), {"code": code, "scale": scale, **rest}  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", list(WIDTHS))
@pytest.mark.parametrize("offsets", ["zero", "least", "constant"])
def test_codes_give_what_integers_give(bits: int, offsets: str) -> None:
    for seed, (rows, width, group) in enumerate(SHAPES):
        packed, parts = drawn(rows, width, group, bits, offsets, seed)
        size = matrix.group_of(width, group)
        assert size is not None
        for tokens in (1, 2, 3, 4, 7, 8, 13):
            x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens)) * 3
            x[0, 0] = 50.0
            expected = product(x, parts["code"], size, **{k: v for k, v in parts.items() if k != "code"})  # type: ignore[arg-type]
            assert torch.equal(packed(x), expected), (rows, width, group, tokens)


def test_the_largest_numbers_do_not_saturate() -> None:
    """Every product as large as it can be: where pairs are added in 16 bits, they must still fit."""
    for bits in WIDTHS:
        code = torch.full((16, 512), 2**bits - 1, dtype=torch.uint8)
        packed = matrix.codes(code, bits, 512, torch.ones(16, 1))
        for sign in (1.0, -1.0):
            assert torch.equal(packed(sign * torch.ones(3, 512)), sign * torch.full((3, 16), 512.0 * (2**bits - 1)))


def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads() -> None:
    packed, _ = drawn(70, 96, 32, 4, "least", 1)
    floats = matrix.floats(torch.randn(70, 90), torch.randn(70))
    for each in (packed, floats):
        x = torch.randn(17, each.cols)
        torch.set_num_threads(1)
        alone = torch.cat([each(row[None]) for row in x])
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for size in (1, 2, 5, 8, 17):
                assert torch.equal(each(x[:size]), alone[:size]), (threads, size)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (4, 16), (19, 40), (70, 90), (131, 33)])
def test_floats_give_what_sums_in_one_order_give(rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(rows, width, generator=generator), torch.randn(rows, generator=generator)
    x = torch.randn(7, width, generator=generator)
    expected = float_product(x, weight, bias)
    exact = (x.double() @ weight.double().t() + bias).float()
    assert float((expected - exact).norm() / exact.norm()) < 3e-7
    packed = matrix.floats(weight, bias)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for tokens in range(1, 8):
            assert torch.equal(packed(x[:tokens]), expected[:tokens]), (tokens, threads)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_skipped_columns_change_nothing(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((19, 40), (130, 67), (1100, 33)):
        weight = torch.randint(-127, 128, (rows, width), dtype=torch.int8, generator=generator)
        scale, bias = torch.rand(rows, generator=generator), torch.randn(rows, generator=generator)
        code = (weight.short() + 128).to(torch.uint8)
        whole = matrix.codes(code, 8, width, scale[:, None], 128, bias=bias, whole_row=True)
        skipping = matrix.columns(weight, scale, whole)
        for tokens in (1, 2, 5):
            x = torch.randn(tokens, width, generator=generator)
            x[torch.rand(tokens, width, generator=generator) >= share] = 0
            size = -(-width // 16) * 16
            expected = product(x, code, size, scale[:, None], 128, bias=bias, whole_row=True)
            assert torch.equal(skipping(x), expected)
            assert torch.equal(whole(x), expected)
            dense = weight.float() * scale[:, None]
            kept = matrix.float_columns(dense, bias)
            assert torch.allclose(kept(x), x @ dense.t() + bias, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("lower", [-9.0, 1.0, 4.0, 9.0])
def test_rows_that_are_not_chosen_give_zeros(each: int, lower: float) -> None:
    """All, few and none of the units; of one row or two."""
    generator = torch.Generator().manual_seed(0)
    for units, width in ((19, 40), (70, 67), (110, 130)):
        rows = units * each
        weight, bias = torch.randn(rows, width, generator=generator), torch.randn(rows, generator=generator)
        thin = [torch.randn(4, width, generator=generator), torch.randn(units, 4, generator=generator) / 9]
        pair = matrix.pair(matrix.floats(thin[0]), matrix.floats(thin[1], torch.full((units,), -lower)))
        code = torch.randint(-127, 128, (rows, width), dtype=torch.int8, generator=generator)
        scale, floats = torch.rand(rows, generator=generator), matrix.floats(weight, bias)
        shifted = (code.short() + 128).to(torch.uint8)
        integers = matrix.codes(shifted, 8, width, scale[:, None], 128, bias=bias, whole_row=True)
        x = torch.randn(9, width, generator=generator)
        for tokens in (1, 2, 5, 9):
            needed = (pair(x[:tokens]) > 0).repeat(1, each)
            for whole, apart in ((floats, ()), (integers, (code, scale)), (integers, ())):
                expected = torch.where(needed, whole(x[:tokens]), 0.0)
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    assert torch.equal(matrix.chosen(whole, pair, *apart)(x[:tokens]), expected)


def test_small_inputs_count_as_zeros() -> None:
    weight = torch.randn(24, 33)
    x = torch.randn(3, 33)
    packed = matrix.float_columns(weight)
    for threshold in (0.0, 0.8):
        expected = x.masked_fill(x.abs() <= threshold, 0.0) @ weight.t()
        assert torch.allclose(packed.thinned(threshold)(x), expected, atol=1e-4)
    top = torch.zeros_like(x).scatter(1, x.abs().topk(5, 1).indices, x.gather(1, x.abs().topk(5, 1).indices))
    assert torch.allclose(packed.thinned(top=5)(x), top @ weight.t(), atol=1e-4)


def test_thin_pairs_and_floats_are_products() -> None:
    a, b, bias = torch.randn(7, 50), torch.randn(40, 7), torch.randn(40)
    x = torch.randn(2, 3, 50)
    both = matrix.pair(matrix.floats(a), matrix.floats(b, bias))
    assert torch.allclose(both(x), x @ a.t() @ b.t() + bias, atol=1e-4)
    assert torch.equal(pickle.loads(pickle.dumps(both))(x), both(x))
    assert both.nbytes == 4 * (7 * 50 + 40 * 7 + 40)


@pytest.mark.parametrize("bits", list(WIDTHS))
def test_what_is_laid_out_can_be_taken_apart(bits: int) -> None:
    packed, parts = drawn(35, 70, 32, bits, "zero", 3)
    assert torch.equal(packed.codes(), parts["code"])  # type: ignore[arg-type]
    scale, zero = matrix.groups_of(packed)
    assert torch.equal(scale, parts["scale"])  # type: ignore[arg-type]
    assert zero is not None
    assert torch.equal(zero, parts["zero"])  # type: ignore[arg-type]
    index = torch.tensor([[0, 34], [17, 2]])
    wide, near = (each.float().repeat_interleave(32, 1)[:, :70] for each in (scale, zero))
    assert torch.equal(packed.rows_of(index), ((packed.codes().float() - near) * wide)[index])


def test_no_tokens_give_no_rows() -> None:
    assert matrix.floats(torch.randn(4, 3))(torch.empty(0, 3)).shape == (0, 4)
    assert matrix.group_of(100, 24) is None
