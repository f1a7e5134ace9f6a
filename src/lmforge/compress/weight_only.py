"""Weights alone in groups of 3 to 8 bits, of one width or of widths that fit a size: the `weights` kind of `quantize`.

model ─block by block─▶ Gram matrices of inputs (of blocks already rounded) ─round─▶ grouped model
               ▲
bytes ─▶ bits of each layer: greedily, nats saved per byte
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lmforge.compress.calibration import grams_by_block
from lmforge.compress.feedback import output_error, round_with_feedback
from lmforge.compress.finished_layers import FinishedLayers
from lmforge.compress.grouped import Grouped, GroupedEmbedding, TiedGroupedHead, grouped_form
from lmforge.compress.groups import Rounded, packed_width, round_groups
from lmforge.compress.importance import divergence
from lmforge.compress.masks import MaskedLinear
from lmforge.compress.method import Context
from lmforge.compress.teachers import digest
from lmforge.errors import InputError, LmforgeError
from lmforge.formats.native import is_tied, model_tensors
from lmforge.kernels.build import path_taken
from lmforge.model.gpt import GPT
from lmforge.recipe import QuantizeStep

WIDTHS = (3, 4, 5, 6, 8)
PROBED = 3  # bits at which the cost of a layer is measured; of other widths it is taken to follow the error
STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # of scaling, that are tried
HEADER = 256  # bytes of a tensor's place in the file's header, at most


def plain_layers(model: GPT) -> list[str]:
    """Layers in floating point: linear ones and tables; the tied head goes with `embed`."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    return [name for name in names if not (name == "head" and is_tied(model))]


def put_grouped(model: GPT, name: str, about: Mapping[str, Any], unpack: str) -> None:
    """The empty grouped form of layer `name` in its place, and of the head where that is tied to it."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear | nn.Embedding)
    tied = name == "embed" and is_tied(model)
    new = grouped_form(old, about, unpack)
    model.set_submodule(name, new)
    if tied and isinstance(new, GroupedEmbedding):
        model.set_submodule("head", TiedGroupedHead(new))


@torch.no_grad()
def quantize_weights(
    model: GPT, settings: QuantizeStep, context: Context, kept: Collection[str] = ()
) -> tuple[GPT, dict[str, Any], dict[str, Any]]:
    """A new model with grouped weights, its entry, and details. Layers of `kept` stay.

    Raises:
        InputError: no layer in floating point is left.
        LmforgeError: even 3 bits everywhere do not fit `settings.bytes` (names the layers that take most).
    """
    if not plain_layers(model):
        raise InputError("compress.steps: quantize: every layer is quantised already; name the step once")
    result = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    names = [name for name in plain_layers(result) if name not in kept]
    details: dict[str, Any] = {}
    plan: dict[str, int] = dict.fromkeys(names, settings.bits)
    if settings.bytes is not None:
        plan, details["nats_alone"] = mixed_bits(result, names, settings, context)
    layers: dict[str, dict[str, Any]] = {}
    errors: dict[str, float] = {}
    finished = FinishedLayers(
        context.folder, kept, digest(model), settings.model_dump(mode="json"), len(context.calibration)
    )
    for grams in grams_by_block(result, context.calibration):
        for name in [name for name in names if name in grams and name not in layers]:
            errors[name] = _round_layer(result, name, plan[name], settings, grams.get(name), layers, finished)
    for name in [name for name in names if name not in layers]:  # tables, and layers that calibration did not reach
        errors[name] = _round_layer(result, name, plan[name], settings, None, layers, finished)
    size = len(save(model_tensors(result)))
    if settings.bytes is not None and size > settings.bytes:
        raise LmforgeError(f"quantize: {size:,} bytes where {settings.bytes:,} are allowed; raise bytes or group")
    entry = {
        "method": "quantize",
        "kind": "weights",
        "layers": layers,
        "unpack": settings.unpack,
        "kept": sorted(kept),
    }
    details |= {
        "bits": plan,
        "mean_bits": _mean_bits(model, plan),
        "output_errors": errors,
        "engine": path_taken() if by_kernel(result) else "fp32 products of unpacked weights",
    }
    return result, entry, details


def by_kernel(model: GPT) -> bool:
    """Whether our own kernels multiply what is in groups."""
    return all(module.packed is not None for module in model.modules() if isinstance(module, Grouped))


def _round_layer(
    model: GPT,
    name: str,
    bits: int,
    settings: QuantizeStep,
    gram: Tensor | None,
    layers: dict[str, dict[str, Any]],
    finished: FinishedLayers,
) -> float:
    """Round a layer of `model` in place and enter it in `layers`; returns the relative error of its outputs."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear | nn.Embedding)
    made = finished(name, lambda: _rounded(old, bits, settings, gram))
    channel = made.get("channel")
    layers[name] = {"bits": bits, "group": settings.group, "scaled": channel is not None}
    put_grouped(model, name, layers[name], settings.unpack)
    rounded = Rounded(made["codes"], made["scale"], made["zero"])
    _fill(model, name, rounded, channel, getattr(old, "bias", None))
    return float(made["error"])


def _rounded(
    old: nn.Linear | nn.Embedding, bits: int, settings: QuantizeStep, gram: Tensor | None
) -> dict[str, Tensor]:
    """A layer's codes, scale, zero, where it has one its channel, and the relative error of its outputs."""
    weight = old.weight.detach()
    mask = old.mask if isinstance(old, MaskedLinear) else None
    channel = channel_scale(weight, gram, bits, settings.group) if settings.scaled else None
    scaled = weight if channel is None else weight * channel
    inner = gram if gram is None or channel is None else gram / (channel[:, None] * channel)
    feedback = settings.rounding == "feedback"
    rounded = (
        round_with_feedback(scaled, inner, bits, settings.group, settings.damping, mask)
        if feedback
        else round_groups(scaled, bits, settings.group)
    )
    missed = rounded.dense(settings.group)
    missed = (missed if channel is None else missed / channel) - weight
    whole = output_error(weight, gram)
    error = (output_error(missed, gram) / whole) ** 0.5 if whole else 0.0
    made = {**rounded._asdict(), "error": torch.tensor(error, dtype=torch.float64)}
    return made if channel is None else made | {"channel": channel}


def _fill(model: GPT, name: str, rounded: Rounded, channel: Tensor | None, bias: Tensor | None) -> None:
    new: Any = model.get_submodule(name)
    new.fill(rounded, channel)
    if bias is not None:
        new.bias = bias.detach().clone()


def channel_scale(weight: Tensor, gram: Tensor | None, bits: int, group: int) -> Tensor | None:
    """Factors of columns (I,), larger for inputs that are, that leave the least error of outputs when rounded to the
    nearest; None where none does better than no factors (Lin et al. 2023, "AWQ", eq. 4 and 5, with the root of the mean
    square of an input for its size)."""
    if gram is None:
        return None
    size = gram.diagonal().clamp(min=0).sqrt()
    size = size / size.mean().clamp(min=1e-30)
    best: Tensor | None = None
    least = output_error(round_groups(weight, bits, group).dense(group) - weight, gram)
    for strength in STRENGTHS:
        factor = size.clamp(min=1e-4) ** strength
        factor = factor / (factor.amax() * factor.amin()).sqrt()
        reached = output_error(round_groups(weight * factor, bits, group).dense(group) / factor - weight, gram)
        if reached < least:
            best, least = factor, reached
    return best


def layer_bytes(rows: int, width: int, bits: int, group: int, scaled: bool) -> int:
    """Bytes of a grouped layer's tensors in the file, less its bias."""
    return rows * (packed_width(width, bits) + 3 * -(-width // group)) + (4 * width if scaled else 0)


def mixed_bits(
    model: GPT, names: Sequence[str], settings: QuantizeStep, context: Context
) -> tuple[dict[str, int], dict[str, float]]:
    """Bits of each layer so that the model fits `settings.bytes`, and nats that each costs alone at 3 bits, the dearest
    first. All begin at 3; again and again that layer gets the next width which saves most nats per byte.

    Raises:
        LmforgeError: 3 bits everywhere are too much.
    """
    assert settings.bytes is not None
    costs, nats = _costs(model, names, settings, context)
    sizes = {name: {bits: _bytes_of(model, name, bits, settings) for bits in WIDTHS} for name in names}
    tensors = model_tensors(model)
    weights = {f"{name}.weight" for name in names}
    rest = sum(tensor.nbytes for name, tensor in tensors.items() if name not in weights)
    rest += HEADER * (len(tensors) + 3 * len(names))
    plan = dict.fromkeys(names, WIDTHS[0])
    left = settings.bytes - rest - sum(sizes[name][bits] for name, bits in plan.items())
    if left < 0:
        most = sorted(names, key=lambda name: -sizes[name][WIDTHS[0]])[:8]
        raise LmforgeError(
            f"quantize: bytes: {settings.bytes - left:,} are needed at 3 bits, {settings.bytes:,} are allowed; what "
            "takes most: "
            + ", ".join(f"{name} {sizes[name][WIDTHS[0]]:,}" for name in most)
            + "; raise bytes, or prune before"
        )

    def gain(name: str) -> float:
        place = WIDTHS.index(plan[name])
        now, following = WIDTHS[place], WIDTHS[place + 1]
        return (costs[name][now] - costs[name][following]) / max(1, sizes[name][following] - sizes[name][now])

    queue = [(-gain(name), name) for name in names]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        following = WIDTHS[WIDTHS.index(plan[name]) + 1]
        more = sizes[name][following] - sizes[name][plan[name]]
        if more > left:
            continue
        left -= more
        plan[name] = following
        if following != WIDTHS[-1]:
            heapq.heappush(queue, (-gain(name), name))
    return plan, nats


def _bytes_of(model: GPT, name: str, bits: int, settings: QuantizeStep) -> int:
    rows, width = model.get_parameter(f"{name}.weight").shape
    return layer_bytes(rows, width, bits, settings.group, settings.scaled)


def _costs(
    model: GPT, names: Sequence[str], settings: QuantizeStep, context: Context
) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Nats that each layer costs alone at each width: measured at one, and beyond it in proportion to the squared error
    of its outputs."""
    batch = context.calibration[:1]
    grams: dict[str, Tensor] = {}
    for each in grams_by_block(model, batch):
        grams |= each
    reference = copy.deepcopy(model)
    nats: dict[str, float] = {}
    costs: dict[str, dict[int, float]] = {}
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear | nn.Embedding)
        weight = module.weight.detach()
        rounded = {bits: round_groups(weight, bits, settings.group).dense(settings.group) for bits in WIDTHS}
        whole = weight.clone()
        module.weight.copy_(rounded[PROBED])  # for a moment, in the copy that is about to be rounded
        nats[name] = divergence(reference, model, batch)
        module.weight.copy_(whole)
        errors = {bits: output_error(each - weight, grams.get(name)) for bits, each in rounded.items()}
        scale = max(nats[name], 1e-12) / max(errors[PROBED], 1e-30)
        costs[name] = {bits: scale * error for bits, error in errors.items()}
    return costs, dict(sorted(nats.items(), key=lambda item: -item[1]))


def _mean_bits(model: GPT, plan: Mapping[str, int]) -> float:
    counts = {name: model.get_parameter(f"{name}.weight").numel() for name in plan}
    return sum(counts[name] * bits for name, bits in plan.items()) / max(1, sum(counts.values()))


def restore_weights(model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
    """The structure that `quantize_weights` left, for the tensors to fill; changes and returns `model`.

    Raises:
        InputError: the entry names what is no layer, or a tensor is missing or of another shape.
    """
    names, layers = set(plain_layers(model)), entry.get("layers")
    if not isinstance(layers, dict) or not set(layers) <= names:
        raise InputError(
            "config.json: compression: layers: not an entry this version reads; run the compress stage again"
        )
    # files of version 0.1 said only whether dense matrices were made in each product
    unpack = entry.get("unpack", "fly" if entry.get("fly") else "load")
    unpack = "load" if entry.get("serve") == "floats" else unpack
    for name, about in layers.items():
        put_grouped(model, name, about, unpack)
        new = model.get_submodule(name)
        for part, wanted in new.state_dict().items():
            tensor = tensors.get(f"{name}.{part}")
            if tensor is None or tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
                have = "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(
                    f"model.safetensors: {name}.{part}: {have}, not {wanted.dtype} {tuple(wanted.shape)}; run the "
                    "compress stage again"
                )
    return model.requires_grad_(False)
