"""Matrices with zeros that stay: a mask beside the weight in memory; in the file the weights that are left and one bit
for each place.

In memory the matrix is dense. Where that is faster on this machine, decoding reads a copy of it without the zeros
(`lmforge.kernels.zeros`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.kernels.matrix import Packed, floats
from lmforge.kernels.zeros import without_zeros
from lmforge.model.gpt import GPT

BITS = 8


def pack_bits(mask: Tensor) -> Tensor:
    """Any number of bools → uint8, eight in each, the first in the lowest bit; the last byte is filled with 0."""
    flat = mask.flatten().to(torch.uint8)
    padded = F.pad(flat, (0, -len(flat) % BITS)).view(-1, BITS)
    packed: Tensor = (padded << torch.arange(BITS, dtype=torch.uint8, device=padded.device)).sum(1, dtype=torch.uint8)
    return packed


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` bits as bools."""
    places = torch.arange(BITS, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> places) & 1).flatten()[:count].bool()


class MaskedLinear(nn.Linear):
    """y = x (W ∘ M)ᵀ + b: weights outside of the mask (O,I) are 0 and get no gradient.

    The file holds `values`, the weights that are left in the order of their places, `bitmask`, and `bias`.
    """

    mask: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, pattern: str = "unstructured") -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.pattern = pattern
        self.register_buffer("mask", torch.ones(out_features, in_features, dtype=torch.bool))

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Keep the weights of a mask (O,I); the others become 0."""
        self.mask = mask.to(self.weight.device)
        self.clear()

    @torch.no_grad()
    def clear(self) -> None:
        """Put zeros where the mask has them: exact ones, without a sign."""
        self.weight.masked_fill_(~self.mask, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        weight = self.weight.masked_fill(~self.mask, 0.0) if self.weight.requires_grad else self.weight
        return F.linear(x, weight, self.bias)

    def kernel_matrix(self) -> Packed | None:
        """As our own kernels take it: of floats, without its zeros where that was measured to be faster here."""
        fits = self.weight.dtype == torch.float32 and self.weight.is_cpu and not self.weight.requires_grad
        return without_zeros(floats(self.weight, self.bias), self.weight) if fits else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.weight if keep_vars else self.weight.detach()
        destination[prefix + "values"] = weight[self.mask]
        destination[prefix + "bitmask"] = pack_bits(self.mask)
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    @torch.no_grad()
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
        names = ["values", "bitmask", *(["bias"] if self.bias is not None else [])]
        missing = [prefix + name for name in names if prefix + name not in state_dict]
        if missing:
            missing_keys += missing
            return
        values, bitmask = state_dict[prefix + "values"], state_dict[prefix + "bitmask"]
        count = self.weight.numel()
        mask = unpack_bits(bitmask, count) if len(bitmask) == -(-count // BITS) else torch.zeros(0)
        if len(mask) != count or int(mask.sum()) != len(values):
            error_msgs.append(
                f"{prefix}bitmask: {len(bitmask)} bytes and {len(values)} values do not fit a matrix of "
                f"{tuple(self.weight.shape)}"
            )
            return
        self.mask = mask.view(self.weight.shape).to(self.weight.device)
        self.weight.zero_()
        self.weight[self.mask] = values.to(self.weight)
        if self.bias is not None:
            self.bias.copy_(state_dict[prefix + "bias"])


def mask_linear(model: GPT, name: str | None, mask: Tensor | None = None, pattern: str = "unstructured") -> None:
    """Put a masked form of the linear layer `name` in its place; None: nothing. Without a mask its zeros stay."""
    if name is None:
        return
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = MaskedLinear(old.in_features, old.out_features, old.bias is not None, pattern).to(old.weight.device)
    with torch.no_grad():
        new.weight.copy_(old.weight)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    new.set_mask(old.weight != 0 if mask is None else mask)
    model.set_submodule(name, new.eval())


def magnitude_mask(scores: Tensor, share: float) -> Tensor:
    """scores (O,I) → the mask that drops a `share` of them, the least (ties: the first places go)."""
    drop = round(share * scores.numel())
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(stable=True)[:drop]] = False
    return mask.view(scores.shape)


def two_of_four_mask(scores: Tensor) -> Tensor:
    """scores (O,I), I a multiple of 4 → the two largest of each four along a row stay (Mishra et al. 2021,
    "Accelerating sparse deep neural networks", section 3)."""
    fours = scores.view(-1, 4)
    top = fours.topk(2, dim=-1).indices
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(1, top, True).view(scores.shape)


def dense_tensors(model: GPT) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name, masked matrices with their zeros in place; what is shared has each of
    its names."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def masked(model: GPT) -> dict[str, str]:
    """The masked layers of a model: {name: pattern}."""
    return {name: module.pattern for name, module in model.named_modules() if isinstance(module, MaskedLinear)}


def restore_masks(model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
    """Put masked layers where `entry["masked"]` has them and no later step has replaced them (their `bitmask` is then
    not in the file); changes and returns `model`.

    Raises:
        InputError: the entry names what is no linear layer.
    """
    names = entry.get("masked", {})
    layers = dict(model.named_modules())
    for name in names:
        if not isinstance(layers.get(name), nn.Linear):
            raise InputError(
                f"config.json: compression: masked: {name!r} is no linear layer; run the compress stage again"
            )
        if f"{name}.bitmask" in tensors or f"{name}.inner.bitmask" in tensors:  # inner: its input is sparse as well
            mask_linear(
                model, name, torch.ones_like(model.get_parameter(f"{name}.weight"), dtype=torch.bool), names[name]
            )
    return model.requires_grad_(False)
