"""The method `qat`, quantization-aware training: a short training in which weights and inputs are rounded as `quantize`
will round them, so that what rounding costs is learned away before it is done.

    model ─rounding in every product─▶ healing: towards the teacher ─▶ model in floating point, made for rounding
                                                                        └─ then `method = "quantize"`

The gradient passes through the rounding as if it were not there (Bengio et al. 2013, section 4: straight-through;
Jacob et al. 2018, section 3, for training with it).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.groups import round_groups
from lmforge.compress.healing import Healing, heal
from lmforge.compress.int8 import LEVELS, TINY
from lmforge.compress.masks import mask_linear, masked, restore_masks
from lmforge.compress.method import Compressed, Context, Method, register
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.model.gpt import GPT
from lmforge.recipe import CompressStep

METHOD = "qat"


class QatStep(CompressStep, Healing):
    """Training with the rounding that a later `quantize` does."""

    method: Literal["qat"] = "qat"
    # as in quantize: w8a8 rounds weights by rows and inputs by tokens; weights: weights alone, in groups
    kind: Literal["w8a8", "weights"] = "w8a8"
    bits: Literal[2, 3, 4, 5, 6, 8] = 4  # of kind = "weights"
    group: Annotated[int, Field(ge=8)] = 32  # of kind = "weights"


class Rounding:
    """How weights (O,I) and inputs (…,I) are rounded; what it gives is of the same shape and type."""

    def __init__(self, settings: QatStep) -> None:
        self.kind, self.bits, self.group = settings.kind, settings.bits, settings.group

    def weight(self, weight: Tensor) -> Tensor:
        """As `quantize` stores them."""
        with torch.no_grad():
            if self.kind == "weights":
                rounded = round_groups(weight, self.bits, self.group).dense(self.group).to(weight.dtype)
            else:
                scale = (weight.abs().amax(1, keepdim=True) / LEVELS).clamp(min=TINY)
                rounded = (weight / scale).round() * scale
        return weight + (rounded - weight).detach()

    def inputs(self, x: Tensor) -> Tensor:
        """Signed, by each token's own largest magnitude; as they are where weights alone are rounded."""
        if self.kind == "weights":
            return x
        with torch.no_grad():
            scale = (x.abs().amax(-1, keepdim=True) / (LEVELS // 2)).clamp(min=TINY)
            rounded = (x / scale).round() * scale
        return x + (rounded - x).detach()


class RoundedLinear(nn.Linear):
    """A linear layer that multiplies rounded inputs by rounded weights; `mask` (O,I): where weights may be."""

    def __init__(self, old: nn.Linear, rounding: Rounding) -> None:
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        self.weight, self.bias, self.rounding = old.weight, old.bias, rounding
        self.mask: Tensor | None
        self.register_buffer("mask", getattr(old, "mask", None))

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        weight = self.weight if self.mask is None else self.weight.masked_fill(~self.mask, 0.0)
        return F.linear(self.rounding.inputs(x), self.rounding.weight(weight), self.bias)


class RoundedEmbedding(nn.Embedding):
    """A table whose rows are rounded as they are read."""

    def __init__(self, old: nn.Embedding, rounding: Rounding) -> None:
        super().__init__(old.num_embeddings, old.embedding_dim, device="meta")
        self.weight, self.rounding = old.weight, rounding

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) → (…,D)."""
        rows = F.embedding(tokens, self.weight)
        return self.rounding.weight(rows.flatten(0, -2)).view(rows.shape)


def with_rounding(model: GPT, rounding: Rounding) -> GPT:
    """The model's parameters in modules that round; what was tied stays so."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, RoundedLinear(module, rounding))
        elif isinstance(module, nn.Embedding):
            model.set_submodule(name, RoundedEmbedding(module, rounding))
    return model


def without_rounding(model: GPT, masks: Mapping[str, str]) -> GPT:
    """A network of plain modules with the weights of one that rounds; `masks`: {name: pattern} of those that keep
    zeros."""
    new = GPT(model.config)
    trained = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    new.load_state_dict({name: (buffers | trained)[name].detach() for name in new.state_dict()})
    for name, pattern in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, RoundedLinear)
        mask_linear(new, name, layer.mask, pattern)
    return new.eval().requires_grad_(False)


class Qat(Method[QatStep]):
    """`qat` as a step of the chain. A budget can give nothing back: every weight has learned with the others."""

    name = METHOD
    settings = QatStep

    def apply(self, model: GPT, settings: QatStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The trained model, in floating point.

        Raises:
            InputError: the model holds integers already, or a teacher has another vocabulary.
        """
        refuse_frozen(model, "a model learns its rounding", "put qat before quantize")
        refuse_sparse(model, "a model learns its rounding")
        masks = masked(model)
        rounding = with_rounding(copy.deepcopy(model).float(), Rounding(settings))
        trained, details = heal(rounding, settings, context)
        result = without_rounding(trained, masks)
        entry = {"method": METHOD, "masked": masks}
        note = "rounds nothing by itself: put a quantize step of the same kind behind it"
        return Compressed(result, entry, {"training": details, "note": note}, fresh=True)

    def inputs(self, settings: QatStep) -> Sequence[Path]:
        """The teachers."""
        return settings.teachers

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As `restore_masks`; nothing else has changed."""
        return restore_masks(model, entry, tensors)


register(Qat())
