"""Optimizer state in 8 bits: a byte a value and a float32 for each block of 256 values, a quarter of the memory.

A value is kept as a share of the largest in its block, on a scale that is fine near zero: sign · (code/127)² for
momenta, (code/255)⁴ for squares, whose values span more powers of ten. Block-wise 8-bit state: Dettmers et al. 2022
("8-bit Optimizers via Block-wise Quantization"); the scales here are powers, which need no table.

Rounding to the nearest code would hold a slowly falling average where it is for ever, as a step is smaller than half a
code; so codes are rounded up or down in the right proportion, by an offset that differs from value to value and from
turn to turn (the additive recurrence with the golden ratio), which is the same again after a restart. No square that is
not zero becomes zero, as updates are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256


def pack(values: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """Values of any shape → (int8 codes of that shape, float32 largest size of each block of 256, in reading order)."""
    blocks, largest = _blocks(values)
    codes = (
        (blocks / largest[:, None])
        .abs_()
        .sqrt_()
        .mul_(127)
        .add_(_offsets(blocks, turn))
        .floor_()
        .clamp_(max=127)
        .copysign_(blocks)
    )
    return codes.to(torch.int8).flatten()[: values.numel()].view(values.shape), largest


def unpack(codes: Tensor, largest: Tensor) -> Tensor:
    """What `pack` kept, float32."""
    shares = codes.float().div_(127)
    return _scaled(shares * shares.abs(), largest)


def pack_squares(values: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """As `pack`, for values that are not negative: uint8 codes."""
    blocks, largest = _blocks(values)
    codes = (blocks / largest[:, None]).sqrt_().sqrt_().mul_(255).add_(_offsets(blocks, turn)).floor_().clamp_(max=255)
    codes = torch.where(blocks > 0, codes.clamp_(min=1), 0)
    return codes.to(torch.uint8).flatten()[: values.numel()].view(values.shape), largest


def unpack_squares(codes: Tensor, largest: Tensor) -> Tensor:
    """What `pack_squares` kept, float32."""
    return _scaled(codes.float().div_(255).pow_(4), largest)


def _offsets(blocks: Tensor, turn: int) -> Tensor:
    """Numbers spread evenly over [0, 1), for each value and turn another."""
    golden = 0.6180339887498949
    places = torch.arange(blocks.numel(), dtype=torch.float64, device=blocks.device)
    return (
        places.mul_(golden)
        .add_(turn * 0.7548776662466927)
        .remainder_(1.0)
        .float()
        .clamp_(max=1 - 2**-24)
        .view(blocks.shape)
    )


def _blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    flat = values.detach().float().flatten()
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    return blocks, blocks.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny)


def _scaled(shares: Tensor, largest: Tensor) -> Tensor:
    flat = shares.flatten()
    return (
        (F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK) * largest[:, None])
        .flatten()[: flat.numel()]
        .view(shares.shape)
    )


class QuantizedState:
    """One parameter's state in an optimizer: named tensors of its shape, in float32 or `packed`."""

    def __init__(self, fields: dict[str, Any], parameter: Tensor, packed: bool) -> None:
        self.fields, self.parameter, self.packed = fields, parameter, packed

    def read(self, name: str) -> Tensor:
        """The tensor, to be changed and given back to `write`; zeros at first."""
        if name not in self.fields:
            return torch.zeros_like(self.parameter, dtype=torch.promote_types(self.parameter.dtype, torch.float32))
        if not self.packed:
            value: Tensor = self.fields[name]
            return value
        expand = unpack_squares if self.fields[name].dtype == torch.uint8 else unpack
        return expand(self.fields[name], self.fields[f"{name}_largest"])

    def write(self, name: str, value: Tensor, squares: bool = False) -> None:
        """Keep it. What is packed counts its turns."""
        if self.packed:
            turn = int(self.fields.get(f"{name}_turn", 0)) + 1
            self.fields[f"{name}_turn"] = torch.tensor(turn)
            self.fields[name], self.fields[f"{name}_largest"] = (pack_squares if squares else pack)(value, turn)
        else:
            self.fields[name] = value


class Packed(torch.optim.Optimizer):
    """An optimizer whose state keeps the types it has (the library would turn bytes into the parameters' type on
    loading)."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the library's, the tensors unchanged."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, fields in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {
                name: torch.as_tensor(value).to(parameter.device, copy=True) for name, value in fields.items()
            }


class AdamW8bit(Packed):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with both moments in 8 bits."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            (first_beta, second_beta), lr = group["betas"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                fields = self.state[parameter]
                fields["step"] = fields.get("step", torch.zeros(())) + 1
                count = float(fields["step"])
                state = QuantizedState(fields, parameter, packed=True)
                first = state.read("first").lerp_(parameter.grad, 1 - first_beta)
                second = (
                    state.read("second")
                    .mul_(second_beta)
                    .addcmul_(parameter.grad, parameter.grad, value=1 - second_beta)
                )
                state.write("first", first)
                state.write("second", second, squares=True)
                parameter.mul_(1 - lr * group["weight_decay"])
                scale = second.div_(1 - second_beta**count).sqrt_().add_(group["eps"])
                parameter.addcdiv_(first, scale, value=-lr / (1 - math.pow(first_beta, count)))
