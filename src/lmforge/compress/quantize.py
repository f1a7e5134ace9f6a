"""8-bit weights and 8-bit activations, multiplied by the CPU's own int8 kernels.

    x (…,I) ─divided by its clip_range, 127 levels─▶ uint8 ─┐
                            weight (O,I) int8 ─packed──┴─ int8 GEMM, int32 sums ─▶ · scale (O) · clip_range ─▶ y (…,O)

Weights: symmetric, one scale per output row. Activations: a clip_range (the largest magnitude kept) per layer, learned
from calibration text, so that a layer is one call; where that rounds too coarsely, or without calibration, the
clip_range is each token's own largest magnitude, found as it passes. Either way no token's result depends on its
neighbours in the batch. Activations use 7 of their 8 bits (reduced range): without VNNI the kernels add pairs of
products in 16 bits, and 2·127·127 = 32,258 is the most that never saturates (full range measured 10-17% wrong there).
Before rounding, channels are evened out between producer and consumer: Xiao et al. 2023 (SmoothQuant), eq. 4; Nagel et
al. 2019, section 4.1.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.feed_forward import FeedForward
from lmforge.model.gpt import GPT, Block
from lmforge.progress import log

METHOD = "quantize"
# weights lie in [−127, 127]; activations in [1, 127] about 64, or in [0, 127] where they cannot be negative
LEVELS = 127
# rounding a layer's calibration inputs with one clip_range may cost this much of their norm; else each token gets its
# own
COARSE = 0.02
_TINY = 1e-30  # keeps a row of zeros from dividing by zero


@functools.cache
def int8_engine() -> str | None:
    """The torch engine whose int8 kernels this CPU runs correctly: fbgemm (x86), qnnpack (ARM), or None.

    Each candidate multiplies one small matrix and is refused when the product is wrong: no missing or saturating kernel
    is used.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 64, generator=generator), torch.randn(3, 64, generator=generator)
    x = x / x.abs().amax(1, keepdim=True)
    whole, scale = _round_rows(weight)
    true = x @ weight.t()
    for engine in ("fbgemm", "qnnpack"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        try:
            found = _multiply(_pack(whole, scale, engine), x, engine, signed=True)
        except (RuntimeError, AttributeError):
            continue
        if float((found - true).norm() / true.norm()) < 0.03:
            return engine
    return None


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
        result = torch.ops.quantized.linear_dynamic(x, packed, True)
    return result


def _round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (O,I) → int8 (O,I) and one fp32 scale per row (O,), weight ≈ int8 · scale."""
    scale = (weight.float().abs().amax(dim=1) / LEVELS).clamp(min=_TINY)
    return (weight.float() / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with int8 weights and activations; x (…,I) fp32 → (…,O) fp32.

    The file holds `weight` (O,I) int8, `scale` (O,) fp32, `clip_range` (1,) fp32 (0: each token's own) and `bias`; in
    memory the weight lies packed for the kernel only. Where no int8 kernel works (or x is not on the CPU) the product
    is taken in fp32: the file stays small, the speed does not rise. `signed` False: x is never negative, so all levels
    serve its positive side. `tied`: the table whose matrix this layer shares.
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
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.signed = in_features, out_features, signed
        self.tied = (tied,)  # in a tuple, so that the embedding is not registered (and stored) a second time
        self.packed: Any = None
        self.engine: str | None = None
        self.dense: Tensor | None = None
        self.fixed = 0.0  # `clip_range` as the kernel takes it: a number on the host
        self.register_buffer("clip_range", torch.zeros(1))
        if tied is None:
            self.register_buffer("weight", torch.empty(0, dtype=torch.int8))
            self.register_buffer("scale", torch.empty(out_features))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    def pack(self, weight: Tensor, scale: Tensor) -> None:
        """Take an int8 matrix (O,I) with its scales (O,) and lay it out for the kernel."""
        self.engine = int8_engine()
        if self.engine is None:
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
        return torch.ops.quantized.linear_unpack(self.packed)[0].int_repr(), self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        if self.packed is None or not x.is_cpu:
            return F.linear(x, self._dense_on(x.device), self.bias)
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
        largest = largest.clamp_(min=_TINY)
        y = _multiply(self.packed, x / largest, self.engine, self.signed).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)

    def _dense_on(self, device: torch.device) -> Tensor:
        if self.dense is None or self.dense.device != device:
            weight, scale = self.unpacked()
            self.dense = weight.to(device).float() * scale.to(device)[:, None]
        return self.dense

    def packed_bytes(self) -> int:
        """Bytes held beside the registered tensors: the kernel's copy (with three numbers of each row) or the fp32
        one."""
        packed = self.out_features * (self.in_features + 12) if self.packed is not None else 0
        return packed + (self.dense.nbytes if self.dense is not None else 0)

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


def layer_names(model: GPT) -> list[str]:
    """The layers that are quantised, each by the name of its module. The tied output head goes with `embed`."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    return [name for name in names if not (name == "head" and _tied(model))]


def _tied(model: GPT) -> bool:
    return model.head is not None and model.embed is not None and model.head.weight is model.embed.weight


def _signed(model: GPT, name: str) -> bool:
    """Whether the input of layer `name` may be negative."""
    return not (name.endswith("ff.down") and model.config.activation in ("relu", "relu2"))


def _replace(model: GPT, name: str) -> None:
    """Put the empty quantised form of layer `name` in its place (and of the head, where it is tied to it)."""
    old = model.get_submodule(name)
    if isinstance(old, nn.Embedding):
        tied = name == "embed" and _tied(model)
        table = QuantizedEmbedding(old.num_embeddings, old.embedding_dim)
        model.set_submodule(name, table)
        if tied:
            model.set_submodule("head", QuantizedLinear(old.embedding_dim, old.num_embeddings, bias=False, tied=table))
    else:
        assert isinstance(old, nn.Linear)
        model.set_submodule(
            name, QuantizedLinear(old.in_features, old.out_features, old.bias is not None, _signed(model, name))
        )


@torch.no_grad()
def quantize(
    model: GPT, calibration: Sequence[Tensor] | None = None, keep: Collection[str] = ()
) -> tuple[GPT, dict[str, Any]]:
    """A new model with int8 layers and what was done; the input is untouched.

    `calibration`: batches of tokens (rows, context) that show how large each channel gets; without them nothing is
    evened out. `keep`: names (of `layer_names`) that stay in fp32.

    Raises:
        InputError: the model has no floating-point layer left.
    """
    if not layer_names(model):
        raise InputError("compress.steps: quantize: every layer is in 8 bits already; name the step once")
    if int8_engine() is None:
        log("quantize: no working int8 kernel on this machine; the file will be small, but the speed is that of fp32")
    result = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    clip_ranges: dict[str, float] = {}
    if calibration:
        smooth(result, calibration)
        clip_ranges = find_clip_ranges(result, calibration)
    names = [name for name in layer_names(result) if name not in keep]
    errors: dict[str, float] = {}
    for name in names:
        old = result.get_submodule(name)
        assert isinstance(old, nn.Linear | nn.Embedding)
        weight, scale = _round_rows(old.weight)
        state = old.state_dict() | {"weight": weight, "scale": scale}
        errors[name] = float((weight * scale[:, None] - old.weight).norm() / old.weight.norm().clamp(min=_TINY))
        if isinstance(old, nn.Linear):
            state["clip_range"] = torch.tensor([clip_ranges.get(name, 0.0)])
        tied = name == "embed" and _tied(result)
        _replace(result, name)
        result.get_submodule(name).load_state_dict(state)
        if tied and isinstance(result.head, QuantizedLinear):
            result.head.load_state_dict({"clip_range": torch.tensor([clip_ranges.get("head", 0.0)])})
    entry = {"method": METHOD, "bits": 8, "activation_bits": 7, "kept": sorted(keep)}
    return result, {
        "entry": entry,
        "engine": int8_engine() or "none (fp32 products)",
        "weight_errors": errors,
        "clip_ranges": clip_ranges,
    }


def restore(model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
    """Rebuild the structure that `quantize` made, for `load_model` to fill with `tensors`; changes and returns `model`.

    Raises:
        InputError: the entry or a tensor is not of the kind that `quantize` writes (names it).
    """
    kept, names = entry.get("kept", []), layer_names(model)
    if (
        entry.get("method") != METHOD
        or entry.get("bits") != 8
        or not isinstance(kept, list)
        or not set(kept) <= set(names)
    ):
        raise InputError(
            f"config.json: compression {dict(entry)}: not an entry this version reads; run the compress stage again"
        )
    for name in names:
        if name in kept:
            continue
        shape = tuple(model.get_parameter(f"{name}.weight").shape)
        parts = [("weight", shape, torch.int8), ("scale", shape[:1], torch.float32)]
        if isinstance(model.get_submodule(name), nn.Linear):
            parts.append(("clip_range", (1,), torch.float32))
        for part, wanted, kind in parts:
            found = tensors.get(f"{name}.{part}")
            if found is None or tuple(found.shape) != wanted or found.dtype != kind:
                have = "missing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise InputError(
                    f"model.safetensors: {name}.{part}: {have}, not {kind} {wanted}; run the compress stage again"
                )
        _replace(model, name)
    return model.requires_grad_(False)


# Evening out


def smooth(model: GPT, calibration: Sequence[Tensor], strength: float = 0.5) -> None:
    """Move scale between layers so that no input channel towers above the rest; the model computes the same function.

    s_j = max|x_j|^strength / max|w_j|^(1 − strength) for input channel j; the producer is divided by s_j, the
    consumer's column j multiplied by it.
    """
    largest = _largest_inputs(model, calibration)
    for name, divide in _pairs(model):
        consumer = model.get_submodule(name)
        assert isinstance(consumer, nn.Linear)
        scale = largest[name].clamp(min=1e-5) ** strength / consumer.weight.abs().amax(0).clamp(min=1e-5) ** (
            1 - strength
        )
        consumer.weight.mul_(divide(scale / scale.log().mean().exp()))


def _largest_inputs(model: GPT, calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """max|x_j| of every input channel of each linear layer, over the calibration tokens."""
    seen: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        largest = x.abs().amax(0)
        seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

    _watch(model, calibration, see)
    return seen


def find_clip_ranges(model: GPT, calibration: Sequence[Tensor]) -> dict[str, float]:
    """Per linear layer its largest calibration input; 0 where rounding with that one clip_range costs more than
    COARSE."""
    clip_ranges = {name: float(channels.amax()) for name, channels in _largest_inputs(model, calibration).items()}
    error, energy = dict.fromkeys(clip_ranges, 0.0), dict.fromkeys(clip_ranges, 0.0)

    def see(name: str, x: Tensor) -> None:
        step = max(clip_ranges[name], _TINY) / (63 if _signed(model, name) else 127)
        error[name] += float(((x / step).round_().mul_(step) - x).square().sum())
        energy[name] += float(x.square().sum())

    _watch(model, calibration, see)
    return {
        name: clip_range if error[name] <= COARSE**2 * energy[name] else 0.0 for name, clip_range in clip_ranges.items()
    }


def _watch(model: GPT, calibration: Sequence[Tensor], see: Callable[[str, Tensor], None]) -> None:
    """Run the calibration tokens; `see(name, x)` gets the input x (N,I) of every linear layer each time it runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linear]
    try:
        for batch in calibration:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()


def _pairs(model: GPT) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """(consumer, divide): `divide(s)` divides what makes the consumer's input by s (I,) and returns the factors
    applied."""
    config = model.config

    def rows(*parameters: Tensor | None) -> Callable[[Tensor], Tensor]:
        def divide(scale: Tensor) -> Tensor:
            for parameter in parameters:
                if parameter is not None:
                    parameter.div_(scale if parameter.ndim == 1 else scale[:, None])
            return scale

        return divide

    def values(qkv: nn.Linear, groups: int) -> Callable[[Tensor], Tensor]:
        def divide(scale: Tensor) -> Tensor:
            group = scale.view(-1, groups, config.head_width).amax(1)  # heads of a group share their values
            kv_width = group.numel()
            rows(qkv.weight[-kv_width:], None if qkv.bias is None else qkv.bias[-kv_width:])(group.flatten())
            return group[:, None].expand(-1, groups, -1).flatten()

        return divide

    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"blocks.{index}."
        attention, attention_norm = block.attention, block.attention_norm
        if attention is not None and attention_norm is not None and isinstance(attention.qkv, nn.Linear):
            yield name + "attention.qkv", rows(attention_norm.weight, attention_norm.bias)
            if isinstance(attention.out, nn.Linear):
                yield name + "attention.out", values(attention.qkv, attention.groups)
        ff, ff_norm = block.ff, block.ff_norm
        if not isinstance(ff, FeedForward) or ff_norm is None or not isinstance(ff.up, nn.Linear):
            continue  # experts share one input with their router; of two thin matrices neither is between norm and sum
        yield name + "ff.up", rows(ff_norm.weight, ff_norm.bias)
        if not isinstance(ff.down, nn.Linear):
            continue
        if config.activation in ("relu", "relu2"):  # max(0, x/s) = max(0, x)/s, so the scale passes through
            power = 0.5 if config.activation == "relu2" else 1.0
            up = rows(ff.up.weight, ff.up.bias)
            yield name + "ff.down", lambda scale, up=up, power=power: up(scale**power) ** (1 / power)  # type: ignore[misc]
