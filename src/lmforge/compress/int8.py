"""8-bit weights and 8-bit activations, multiplied as integers: by our own kernels, or else by torch's.

    x (…,I) ─divided by its clip_range, 127 levels─▶ 8 bits ─┐
                            weight (O,I) int8 ─packed──┴─ int8 GEMM, int32 sums ─▶ · scale (O) · clip_range ─▶ y (…,O)

Weights: symmetric, one scale per output row. Activations: a clip_range (the largest magnitude kept) per layer, learned
from calibration text, so that a layer is one call; where that rounds too coarsely, or without calibration, the
clip_range is each token's own largest magnitude, found as it passes. Either way no token's result depends on its
neighbours in the batch: sums of integers are exact in any order. With our own kernels (`lmforge.kernels`) activations
have 127 levels on each side of 0. torch's use 7 of their 8 bits (reduced range): without VNNI they add pairs of
products in 16 bits, and 2·127·127 = 32,258 is the most that never saturates (full range measured 10-17% wrong there).
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.compress.on_device import DeviceMatrix
from lmforge.kernels import matrix
from lmforge.kernels.build import library, path_taken
from lmforge.kernels.matrix import Packed

OWN = "own"
CENTRE = 128  # the code of a weight of 0, in our own layout
# weights lie in [−127, 127]; activations in [1, 127] about 64, or in [0, 127] where they cannot be negative
LEVELS = 127
TINY = 1e-30  # keeps a row of zeros from dividing by zero
SHARES = [1 - 0.02 * step for step in range(21)]  # of the largest magnitude, tried where the least error is asked for


@functools.cache
def int8_engine() -> str | None:
    """The torch engine whose int8 kernels this CPU runs correctly: fbgemm (x86), qnnpack (ARM), or None.

    Each candidate multiplies one small matrix and is refused when the product is wrong: no missing or saturating kernel
    is used.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 64, generator=generator), torch.randn(3, 64, generator=generator)
    x = x / x.abs().amax(1, keepdim=True)
    whole, scale = round_rows(weight)
    true = x @ weight.t()
    for engine in ("fbgemm", "qnnpack"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        try:
            product = _multiply(_pack(whole, scale, engine), x, engine, signed=True)
        except (RuntimeError, AttributeError):
            continue
        if float((product - true).norm() / true.norm()) < 0.03:
            return engine
    return None


def engine_here() -> str:
    """What multiplies integers here, in words."""
    return path_taken() if library() is not None else int8_engine() or "none (fp32 products)"


def _pack(weight: Tensor, scale: Tensor, engine: str) -> Any:
    """An int8 matrix (O,I) with row scales (O,) in the kernel's own layout."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with warnings.catch_warnings():
            # the packing call takes only the tensor type that torch has begun to deprecate
            warnings.simplefilter("ignore")
            zero = torch.zeros(len(scale), dtype=torch.long)
            rows = torch._make_per_channel_quantized_tensor(weight.contiguous(), scale.double(), zero, 0)
            return torch.ops.quantized.linear_prepack(rows, None)
    finally:
        torch.backends.quantized.engine = before


def _multiply(packed: Any, x: Tensor, engine: str, signed: bool, clip_range: float = 1.0) -> Tensor:
    """x (…,I) within [−clip_range, clip_range] ([0, clip_range] unless signed) → (…,O) through the int8 kernel."""
    if engine == "fbgemm":
        step, zero = (clip_range / 63, 64) if signed else (clip_range / 127, 0)
        result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, step, zero, packed)
    else:
        # this kernel takes its range from all rows that it gets: two more, cut off again, make that range always the
        # same, so that no row's rounding depends on the others
        edges = x.new_zeros(2, x.shape[-1])
        edges[0, 0], edges[1, 0] = 1, -1 if signed else 0
        rows = torch.ops.quantized.linear_dynamic(torch.cat((x.flatten(0, -2), edges)), packed, True)
        result = rows[:-2].unflatten(0, x.shape[:-1])
    return result


def round_rows(weight: Tensor, least_error: bool = False) -> tuple[Tensor, Tensor]:
    """weight (O,I) → int8 (O,I) and one fp32 scale per row (O,), weight ≈ int8 · scale. The scale spans the largest
    weight; with `least_error` it may cut the largest ones where that leaves less squared error."""
    whole = (weight.float().abs().amax(dim=1) / LEVELS).clamp(min=TINY)

    def rounded(scale: Tensor) -> Tensor:
        return (weight.float() / scale[:, None]).round_().clamp_(-LEVELS, LEVELS)

    scale = whole
    if least_error:
        least = torch.full_like(whole, torch.inf)
        for share in SHARES:
            error = (rounded(share * whole) * (share * whole)[:, None] - weight).square().sum(1)
            better = error < least
            scale, least = torch.where(better, share * whole, scale), torch.where(better, error, least)
    return rounded(scale).to(torch.int8), scale


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with int8 weights and activations; x (…,I) fp32 → (…,O) fp32.

    The file holds `weight` (O,I) int8, `scale` (O,) fp32, `clip_range` (1,) fp32 (0: each token's own) and `bias`; in
    memory the weight lies packed for the kernel only. Where no int8 kernel works (or x is not on the CPU) the product
    is taken in fp32: the file stays small, the speed does not rise. `signed` False: x is never negative, so all levels
    serve its positive side. `tied`: the table whose matrix this layer shares. `floats`: the product is taken in fp32
    although there are kernels, since it was measured to be the faster one.
    """

    weight: Tensor
    scale: Tensor
    clip_range: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        signed: bool = True,
        tied: QuantizedEmbedding | None = None,
        floats: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.signed, self.floats = in_features, out_features, signed, floats
        self.tied = (tied,)  # in a tuple, so that the embedding is not registered (and stored) a second time
        self.packed: Any = None
        self.engine: str | None = None
        self.dense: Tensor | None = None
        self.elsewhere: DeviceMatrix | None = None  # on a GPU
        self.fixed = 0.0  # `clip_range` as the kernel takes it: a number on the host
        self.register_buffer("clip_range", torch.zeros(1))
        if tied is None:
            self.register_buffer("weight", torch.empty(0, dtype=torch.int8))
            self.register_buffer("scale", torch.empty(out_features))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    def pack(self, weight: Tensor, scale: Tensor) -> None:
        """Take an int8 matrix (O,I) with its scales (O,) and lay it out for the kernel."""
        self.elsewhere = None
        self.engine = (
            None
            if self.floats
            else OWN
            if library() is not None and self.in_features <= matrix.MOST_COLUMNS
            else int8_engine()
        )
        if self.engine == OWN:
            code, clip = (weight.cpu().short() + CENTRE).to(torch.uint8), self.fixed
            one, bias = scale.cpu().float()[:, None], None if self.bias is None else self.bias.cpu()
            self.packed = matrix.codes(code, 8, self.in_features, one, CENTRE, bias=bias, whole_row=True, clip=clip)
            self.dense = None
        elif self.engine is None:
            self.packed, self.dense = None, weight.float() * scale[:, None]
        else:
            self.packed, self.dense = _pack(weight.cpu(), scale.cpu(), self.engine), None
        if self.tied[0] is None:
            self.scale = scale
            self.weight = weight if self.packed is None else weight.new_empty(0)

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """The int8 matrix (O,I) and its scales (O,), as in the file."""
        if self.tied[0] is not None:
            return self.tied[0].weight, self.tied[0].scale
        if self.packed is None:
            return self.weight, self.scale
        if isinstance(self.packed, Packed):
            return (self.packed.codes().short() - CENTRE).to(torch.int8), self.scale
        return torch.ops.quantized.linear_unpack(self.packed)[0].int_repr(), self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        if not x.is_cpu and not self.floats:
            return self._on(x.device)(x)
        if self.packed is None:
            return F.linear(x, self._dense_on(x.device), self.bias)
        if isinstance(self.packed, Packed):
            return self.packed(x.float() if self.signed else x.float().clamp(min=0))
        assert self.engine is not None
        if self.fixed and self.engine == "fbgemm":  # the dynamic kernels of other engines find their own range
            # The kernel itself cuts at 255, beyond the 127 that its 16-bit sums can bear, so the cut at the clip_range
            # is ours.
            y = _multiply(self.packed, x.clamp(-self.fixed, self.fixed), self.engine, self.signed, self.fixed)
            return y if self.bias is None else y.add_(self.bias)
        largest = (
            torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)
            if self.signed
            else x.amax(dim=-1, keepdim=True)
        )
        largest = largest.clamp_(min=TINY)
        y = _multiply(self.packed, x / largest, self.engine, self.signed).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)

    def kernel_matrix(self) -> Packed | None:
        """Its matrix as our own kernels take it; None: they do not multiply it."""
        if isinstance(self.packed, Packed):
            return self.packed
        return matrix.floats(self.dense, self.bias) if self.floats and self.dense is not None else None

    def kernel_columns(self) -> Packed | None:
        """The same for inputs of which many are 0: their columns are not touched where there is a token at a time."""
        if not isinstance(self.packed, Packed):
            return None
        weight, scale = self.unpacked()
        return matrix.columns(weight, scale, self.packed, clip=self.fixed)

    def _on(self, device: torch.device) -> DeviceMatrix:
        if self.elsewhere is None or self.elsewhere.weight.device != device:
            weight, scale = (part.to(device) for part in self.unpacked())
            bias = None if self.bias is None else self.bias.to(device)
            self.elsewhere = DeviceMatrix(weight, scale, bias, self.fixed)
        return self.elsewhere

    def _dense_on(self, device: torch.device) -> Tensor:
        if self.dense is None or self.dense.device != device:
            weight, scale = self.unpacked()
            self.dense = weight.to(device).float() * scale.to(device)[:, None]
        return self.dense

    def unregistered_bytes(self) -> int:
        """Bytes held beside the registered tensors: the kernel's copy (with three numbers of each row) or the fp32
        one."""
        packed = self.out_features * (self.in_features + 12) if self.packed is not None else 0
        packed = self.packed.data.nbytes if isinstance(self.packed, Packed) else packed
        return packed + (self.dense.nbytes if self.dense is not None else 0)

    def weight_bytes(self) -> int:
        """Bytes that its weights take in memory, the kernel's copy included; those of a table that it shares are the
        table's."""
        return sum(buffer.nbytes for buffer in self.buffers()) + self.unregistered_bytes()

    def macs_per_token(self) -> int:
        """Multiply-accumulates for one token: as many as in floating point."""
        return self.in_features * self.out_features

    def bit_operations(self) -> int:
        """Of a token: products of 8 bits by 8."""
        return self.in_features * self.out_features * 8 * 8

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tied[0] is None:
            destination[prefix + "weight"], destination[prefix + "scale"] = self.unpacked()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + "reach" in state_dict:  # its name in files of version 0.1
            state_dict[prefix + "clip_range"] = state_dict.pop(prefix + "reach")
        own = ["weight", "scale", "clip_range"] if self.tied[0] is None else ["clip_range"]
        missing = [
            prefix + name for name in own + ["bias"] * (self.bias is not None) if prefix + name not in state_dict
        ]
        missing_keys += missing
        if prefix + "clip_range" in state_dict:
            self.clip_range = state_dict[prefix + "clip_range"].clone()
            self.fixed = float(self.clip_range)
        if self.bias is not None and prefix + "bias" in state_dict:
            self.bias = state_dict[prefix + "bias"].clone()
        if self.tied[0] is not None:  # the embedding stands before the head in the model, so it is already filled
            self.pack(*self.unpacked())
        elif not missing:
            self.pack(state_dict[prefix + "weight"], state_dict[prefix + "scale"].clone())


class QuantizedEmbedding(nn.Module):
    """Rows of an int8 table, each with its own fp32 scale: tokens (…) → (…,D)."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, width, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(rows))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) → (…,D)."""
        return F.embedding(tokens, self.weight).float().mul_(self.scale[tokens].unsqueeze(-1))
