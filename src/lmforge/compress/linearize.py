"""The method `linearize`: the full attention of a trained model becomes attention of another kind.

    original ─rows─▶ inputs and outputs of each attention ─transfer─▶ each new attention, by itself, towards them
                                                         ─healing─▶ the whole, towards the original's distribution

Zhang et al. 2024 ("LoLCATs", section 3) do so with learned feature maps and low-rank healing; here every weight of a
new attention learns in the transfer, and every weight of the network in the healing.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.healing import Healing, Rows, heal
from lmforge.compress.masks import dense_tensors, mask_linear, masked, restore_masks
from lmforge.compress.method import CalibrationBatch, Compressed, Context, Method, register
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.compress.teachers import digest
from lmforge.errors import InputError
from lmforge.model.attention import Attention
from lmforge.model.cache import ForwardContext
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import CompressStep
from lmforge.recipe.types import Positive, Section
from lmforge.record import hash_json, write_atomic
from lmforge.train.optim import rate

METHOD = "linearize"
PARTS = 5  # times the transfer is saved
Seen = Callable[[int, Tensor, ForwardContext, Tensor], None]


class Transfer(Section):
    """Training of each new attention by itself towards the outputs of the one that it stands for."""

    # updates of the weights
    steps: Positive = 200
    rows: Positive = 8  # of a step
    peak_lr: Annotated[float, Field(gt=0)] = 1e-3  # AdamW's


class LinearizeStep(CompressStep):
    """Full attention becomes linear, LSH (Reformer) or sparse attention."""

    method: Literal["linearize"] = "linearize"
    # what full attention becomes; the keys below belong to kinds as those of [model] do
    kind: Literal["linear", "lsh", "window", "strided", "pooled", "sparse"] = "linear"
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # numbers; default: every layer of full attention
    feature_map: Literal["elu", "learned"] = "learned"  # of linear attention
    window: Positive | None = None  # tokens before that are seen each by itself; default: the model's
    stride: Positive | None = None  # beyond the window every so manyth token; default: the model's
    pool: Positive | None = None  # tokens that are pooled into one; default: the model's
    lsh_span: Positive | None = None  # tokens of a piece of LSH; default: the model's
    lsh_rounds: Positive | None = None  # hashings of LSH; default: the model's
    # each new attention learns by itself first
    transfer: Transfer | None = Transfer()
    # then the whole network
    heal: Healing | None = Healing()


def full_layers(config: GPTConfig) -> list[int]:
    """The layers with full attention."""
    shapes = [(layer, config.shape_of(layer)) for layer in range(config.layers)]
    return [layer for layer, shape in shapes if shape.heads and config.kind_of(layer) == "full"]


def linearized_config(config: GPTConfig, settings: LinearizeStep, layers: Collection[int]) -> GPTConfig:
    """The shape with other kinds of attention in `layers`.

    Raises:
        InputError: the kind does not fit the network, or a layer of that kind is there and would change with the keys.
    """
    pattern = tuple(settings.kind if layer in layers else config.kind_of(layer) for layer in range(config.layers))
    names = {"linear": ("feature_map",), "lsh": ("lsh_span", "lsh_rounds"), "window": ("window",)}
    names |= {"strided": ("window", "stride"), "pooled": ("pool",), "sparse": ("window", "stride", "pool")}
    keys = {name: getattr(settings, name) for name in names[settings.kind] if getattr(settings, name) is not None}
    changed = {name: value for name, value in keys.items() if getattr(config, name) != value}
    for name, value in changed.items():
        sharing = [layer for layer in range(config.layers) if name in names.get(config.kind_of(layer), ())]
        if sharing:
            raise InputError(
                f"compress.steps: linearize: {name}: {value} would change layer {sharing[0]}, whose attention is of "
                f"kind '{config.kind_of(sharing[0])}' with {name} {getattr(config, name)}; leave {name} out"
            )
    if settings.kind == "linear" and config.attention_scale:
        raise InputError(
            "compress.steps: linearize: kind: linear attention has no scores, and this network scales them by "
            f"{config.attention_scale:g} (model.attention_scale); choose window, sparse or strided"
        )
    short = pattern if len(set(pattern)) > 1 else pattern[:1]
    return dataclasses.replace(config, attention=short, **changed)


def relaid(model: GPT, config: GPTConfig) -> GPT:
    """A network of shape `config` with the weights of `model`, whose kinds of attention alone differ. LSH begins with
    the mean of queries and keys, which it has one matrix for; what a kind learns of its own begins neutral."""
    new = GPT(config)
    state = new.state_dict()
    old = dense_tensors(model)
    for name, target in state.items():
        tensor = old.get(name)
        if tensor is not None and tensor.shape == target.shape:
            state[name] = tensor
        elif tensor is not None:
            state[name] = _queries_as_keys(name, tensor, model.config)
    new.load_state_dict(state)
    for name, pattern in masked(model).items():
        if model.get_parameter(f"{name}.weight").shape == new.get_parameter(f"{name}.weight").shape:
            mask_linear(new, name, pattern=pattern)
    return new.eval().requires_grad_(False)


def _queries_as_keys(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    """Rows of queries, keys and values → of queries that are keys, and values; the first of a thin pair stays."""
    layer = int(name.split(".")[1])
    width = config.shape_of(layer).heads * config.head_width
    queries, keys, values = tensor.split(width)
    return torch.cat(((queries + keys) / 2, values))


@contextmanager
def _watching(model: GPT, layers: Iterable[int], see: Seen) -> Iterator[None]:
    """While it lasts `see(layer, input, forward_ctx, output)` is called for each of these attentions."""

    def hook(layer: int) -> Callable[..., None]:
        def ran(_: nn.Module, inputs: tuple[Tensor, ForwardContext], output: Tensor) -> None:
            see(layer, *inputs, output)

        return ran

    handles = []
    for layer in layers:
        attention = model.blocks[layer].attention
        assert attention is not None
        handles.append(attention.register_forward_hook(hook(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.enable_grad()
def transfer(
    original: GPT, model: GPT, layers: Sequence[int], settings: Transfer, context: Context
) -> dict[str, float]:
    """Train each attention of `layers` in `model` (in place) to give what that of `original` gives for the same input;
    the squared error of each, as a share of the outputs' own square, over the last tenth of the steps. Goes on from its
    file in the step's folder."""
    rows = Rows(context, Healing(steps=settings.steps, rows=settings.rows))
    attentions: dict[int, Attention] = {}
    for layer in layers:
        attention = model.blocks[layer].attention
        assert attention is not None
        attentions[layer] = attention.requires_grad_(True)
    parameters = [parameter for each in attentions.values() for parameter in each.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.peak_lr, weight_decay=0.0)
    start = hash_json([digest(original), digest(model), list(layers), settings.model_dump(mode="json")])
    file = context.folder / f"transfer-{start[:12]}.pt"
    step, errors = 0, []
    if file.is_file():
        state = torch.load(file, weights_only=True)
        step, errors = int(state["step"]), list(state["errors"])
        for layer, each in attentions.items():
            each.load_state_dict(state["attentions"][layer])
        optimizer.load_state_dict(state["optimizer"])
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_lr * rate(step, settings.steps, -(-settings.steps // 25), 0.1, "cosine")
        errors.append(_transfer_step(original, attentions, rows(step)))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % max(1, -(-settings.steps // PARTS)) == 0 or step == settings.steps:
            _save(file, step, errors, attentions, optimizer)
            mean = sum(errors[-1].values()) / len(layers)
            log(f"compress: transfer of attention: step {step} of {settings.steps}, error {mean:.4f}")
    model.requires_grad_(False)
    last = errors[-max(1, len(errors) // 10) :]
    return {f"blocks.{layer}": sum(each[layer] for each in last) / len(last) for layer in layers}


def _transfer_step(original: GPT, attentions: Mapping[int, Attention], batch: CalibrationBatch) -> dict[int, float]:
    """Add the gradients of one step's rows; the relative errors by layer. The inputs are the original's, so that no
    layer waits for those before it."""
    errors: dict[int, float] = {}

    def see(layer: int, x: Tensor, forward_ctx: ForwardContext, wanted: Tensor) -> None:
        x, wanted = x.detach(), wanted.detach()
        with torch.enable_grad():
            error = (attentions[layer](x, forward_ctx) - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)
            error.backward()
        errors[layer] = float(error.detach())

    with torch.no_grad(), _watching(original, attentions, see):
        original.hidden(batch.inputs, documents=batch.documents)
    return errors


def _save(
    file: Path,
    step: int,
    errors: list[dict[int, float]],
    attentions: Mapping[int, Attention],
    optimizer: torch.optim.Optimizer,
) -> None:
    content = io.BytesIO()
    states = {layer: each.state_dict() for layer, each in attentions.items()}
    torch.save({"step": step, "errors": errors, "attentions": states, "optimizer": optimizer.state_dict()}, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())


class Linearize(Method[LinearizeStep]):
    """`linearize` as a step of the chain; a budget gives layers back: "blocks.3" attends fully again."""

    name = METHOD
    settings = LinearizeStep

    def apply(self, model: GPT, settings: LinearizeStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The model with other attention.

        Raises:
            InputError: a layer that is named has no full attention, none has, or the kind does not fit the network.
        """
        refuse_frozen(model, "attention is replaced", "put the step before it")
        refuse_sparse(model, "attention is replaced")
        layers = [int(unit.split(".")[1]) for unit in self.units(model, settings) if unit not in kept]
        original = copy.deepcopy(model).float().eval().requires_grad_(False)
        config = linearized_config(model.config, settings, layers)
        torch.manual_seed(context.seed)
        result = relaid(original, config)
        details: dict[str, Any] = {"attention": [config.kind_of(layer) for layer in range(config.layers)]}
        if settings.transfer is not None and layers:
            details["transfer_errors"] = transfer(original, result, layers, settings.transfer, context)
        if settings.heal is not None and layers:
            result, details["training"] = heal(result, settings.heal, context)
        entry = {"method": METHOD, "kept": sorted(kept), "masked": masked(result)}
        return Compressed(result.eval().requires_grad_(False), entry, details, fresh=True)

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As `restore_masks`; kinds of attention are in the config."""
        return restore_masks(model, entry, tensors)

    def inputs(self, settings: LinearizeStep) -> Sequence[Path]:
        """The teachers of the healing."""
        return settings.heal.teachers if settings.heal else ()

    def units(self, model: GPT, settings: LinearizeStep) -> Sequence[str]:
        """The layers that change: "blocks.N".

        Raises:
            InputError: a layer that is named has no full attention, or none has.
        """
        full = full_layers(model.config)
        wrong = sorted(set(settings.layers or ()) - set(full))
        if wrong or not full:
            have = f"layers {', '.join(map(str, full))} have" if full else "no layer has"
            named = f"layers: {wrong[0]} has no full attention; " if wrong else ""
            raise InputError(f"compress.steps: linearize: {named}{have} it")
        return [f"blocks.{layer}" for layer in (full if settings.layers is None else sorted(set(settings.layers)))]


register(Linearize())
