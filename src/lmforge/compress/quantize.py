"""The method `quantize`: linear layers and embedding tables in 8 bits (`lmforge.compress.int8`), evened out before
(`lmforge.compress.smooth`), inputs in the ranges of `lmforge.compress.clip_ranges`, outlier columns kept
(`lmforge.compress.outliers`).

    model ─smooth─▶ ─find_clip_ranges─▶ ─round, layer by layer, but those kept─▶ int8 model
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.compress.clip_ranges import find_clip_ranges
from lmforge.compress.int8 import TINY, QuantizedEmbedding, QuantizedLinear, engine_here, round_rows
from lmforge.compress.method import CalibrationBatch, Compressed, Context, Method, register
from lmforge.compress.outliers import OutlierLinear
from lmforge.compress.smooth import signed_input, smooth
from lmforge.compress.weight_only import plain_layers, quantize_weights, restore_weights
from lmforge.errors import InputError
from lmforge.formats.native import is_tied
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import QuantizeStep

METHOD = "quantize"
FLOATS = "floats"  # an entry's "serve" where integers were measured to be slower here


def _replace(model: GPT, name: str, floats: bool = False, outliers: int = 0) -> None:
    """Put the empty quantised form of layer `name` in its place (and of the head, where it is tied to it)."""
    old = model.get_submodule(name)
    if isinstance(old, nn.Embedding):
        tied = name == "embed" and is_tied(model)
        table = QuantizedEmbedding(old.num_embeddings, old.embedding_dim)
        model.set_submodule(name, table)
        if tied:
            head = QuantizedLinear(old.embedding_dim, old.num_embeddings, bias=False, tied=table, floats=floats)
            model.set_submodule("head", head)
    else:
        assert isinstance(old, nn.Linear)
        sizes, bias, signed = (old.in_features, old.out_features), old.bias is not None, signed_input(model, name)
        layer = QuantizedLinear(*sizes, bias, signed, floats=floats)
        if outliers := min(outliers, old.in_features):
            layer = OutlierLinear(*sizes, bias, signed, outliers, floats)
        model.set_submodule(name, layer)


@torch.no_grad()
def quantize(
    model: GPT,
    calibration: Sequence[CalibrationBatch] | None = None,
    keep: Collection[str] = (),
    settings: QuantizeStep | None = None,
) -> tuple[GPT, dict[str, Any]]:
    """A new model with int8 layers and what was done; the input is untouched.

    `calibration`: batches of tokens (rows, context) that show how large each channel gets; without them nothing is
    evened out, no range is known before and no column is kept. `keep`: names (of `plain_layers`) that stay in fp32.
    `settings`: of ranges, scales and outliers.

    Raises:
        InputError: the model has no floating-point layer left.
    """
    if not plain_layers(model):
        raise InputError("compress.steps: quantize: every layer is in 8 bits already; name the step once")
    if engine_here().startswith("none"):
        log("quantize: no working int8 kernel on this machine; the file will be small, but the speed is that of fp32")
    result = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    settings = settings or QuantizeStep()
    clip_ranges: dict[str, float] = {}
    columns: dict[str, Tensor] = {}
    if calibration:
        largest = smooth(result, calibration)
        if settings.outliers:
            columns = _outliers(result, largest, settings.outliers, keep)
        clip_ranges = find_clip_ranges(
            result, calibration, largest, settings.activations, settings.percentile, without=columns
        )
    errors = {
        name: _round(result, name, clip_ranges, columns.get(name), settings.scales == "mse")
        for name in [name for name in plain_layers(result) if name not in keep]
    }
    entry: dict[str, Any] = {"method": METHOD, "bits": 8, "activation_bits": 8, "kept": sorted(keep)}
    if columns:
        entry["outliers"] = settings.outliers
    return result, {
        "entry": entry,
        "engine": engine_here(),
        "weight_errors": errors,
        "clip_ranges": clip_ranges,
    }


def _round(model: GPT, name: str, clip_ranges: Mapping[str, float], columns: Tensor | None, least_error: bool) -> float:
    """Put the rounded form of layer `name` in its place; returns the relative error of its weights."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear | nn.Embedding)
    rounded, state = old.weight, {}
    if columns is not None:
        rounded = old.weight.index_fill(1, columns, 0.0)
        state = {"columns": columns, "kept": old.weight[:, columns].t().contiguous()}
    weight, scale = round_rows(rounded, least_error)
    state |= {"weight": weight, "scale": scale}
    bias = getattr(old, "bias", None)
    if bias is not None:
        state["bias"] = bias
    if isinstance(old, nn.Linear):
        state["clip_range"] = torch.tensor([clip_ranges.get(name, 0.0)])
    tied = name == "embed" and is_tied(model)
    _replace(model, name, outliers=0 if columns is None else len(columns))
    model.get_submodule(name).load_state_dict(state)
    if tied and isinstance(model.head, QuantizedLinear):
        model.head.load_state_dict({"clip_range": torch.tensor([clip_ranges.get("head", 0.0)])})
    return float((weight * scale[:, None] - rounded).norm() / old.weight.norm().clamp(min=TINY))


def _outliers(model: GPT, largest: Mapping[str, Tensor], count: int, keep: Collection[str]) -> dict[str, Tensor]:
    """Of each linear layer with a matrix of its own the columns with the largest inputs, in order: (`count`,) each."""
    return {
        name: channels.topk(min(count, len(channels))).indices.sort().values
        for name, channels in largest.items()
        if name not in keep and has_columns(model, name)
    }


def has_columns(model: GPT, name: str) -> bool:
    """Whether columns of this layer can be kept apart: it is linear, and shares its matrix with no table."""
    return isinstance(model.get_submodule(name), nn.Linear) and not (name == "head" and is_tied(model))


def restore(model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
    """Rebuild the structure that `quantize` made, for `load_model` to fill with `tensors`; changes and returns `model`.

    Raises:
        InputError: the entry or a tensor is not of the kind that `quantize` writes (names it).
    """
    kept, names, outliers = entry.get("kept", []), plain_layers(model), entry.get("outliers", 0)
    if (
        entry.get("method") != METHOD
        or entry.get("bits") != 8
        or not isinstance(kept, list)
        or not set(kept) <= set(names)
        or not isinstance(outliers, int)
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
        apart = min(outliers, shape[1]) if has_columns(model, name) else 0
        if apart:
            parts += [("columns", (apart,), torch.int64), ("kept", (apart, shape[0]), torch.float32)]
        for part, wanted, kind in parts:
            tensor = tensors.get(f"{name}.{part}")
            if tensor is None and part == "clip_range":
                tensor = tensors.get(f"{name}.reach")  # its name in files of version 0.1
            if tensor is None or tuple(tensor.shape) != wanted or tensor.dtype != kind:
                have = "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(
                    f"model.safetensors: {name}.{part}: {have}, not {kind} {wanted}; run the compress stage again"
                )
        if apart and not ((columns := tensors[f"{name}.columns"]) >= 0).logical_and(columns < shape[1]).all():
            raise InputError(
                f"model.safetensors: {name}.columns: not columns of {shape[1]}; run the compress stage again"
            )
        _replace(model, name, entry.get("serve") == FLOATS, apart)
    return model.requires_grad_(False)


class Quantize(Method[QuantizeStep]):
    """`quantize` as a step of the chain; a budget gives layers back, each by the name of its module."""

    name = METHOD
    settings = QuantizeStep

    def apply(self, model: GPT, settings: QuantizeStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """As `quantize`, or `quantize_weights`; with `cache_bits = 8` decoding keeps keys and values in 8 bits too."""
        if settings.kind == "weights":
            result, entry, details = quantize_weights(model, settings, context, kept)
        else:
            result, details = quantize(model, context.calibration, kept, settings)
            entry = details.pop("entry")
        if settings.cache_bits == 8:
            entry, result.cache_dtype = {**entry, "cache_bits": 8}, torch.int8
        return Compressed(result, entry, details)

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As the function `restore`, or `restore_weights`."""
        if entry.get("cache_bits") == 8:
            model.cache_dtype = torch.int8
        if entry.get("kind") == "weights":
            return restore_weights(model, entry, tensors)
        return restore(model, entry, tensors)

    def units(self, model: GPT, settings: QuantizeStep) -> Sequence[str]:
        """As `plain_layers`."""
        return plain_layers(model)


register(Quantize())
