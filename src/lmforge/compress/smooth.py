"""Before rounding: channels evened out between producer and consumer.

Xiao et al. 2023 (SmoothQuant), eq. 4; Nagel et al. 2019, section 4.1.

Calibration looks at every token that the network reads. Those that the loss leaves out (questions, instructions) are
rounded and cut like the others, and what counts is computed from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lmforge.compress.method import CalibrationBatch
from lmforge.model.feed_forward import FeedForward
from lmforge.model.gpt import GPT, Block
from lmforge.model.norms import Norm


def signed_input(model: GPT, name: str) -> bool:
    """Whether the input of layer `name` may be negative."""
    return not (name.endswith("ff.down") and model.config.activation in ("relu", "relu2"))


def smooth(model: GPT, calibration: Sequence[CalibrationBatch], strength: float = 0.5) -> dict[str, Tensor]:
    """Move scale between layers so that no input channel towers above the rest; the model computes the same function.

    s_j = max|x_j|^strength / max|w_j|^(1 − strength) for input channel j; the producer is divided by s_j, the
    consumer's column j multiplied by it. Returns max|x_j| of every linear layer (I,) as it then is: what was found
    before, divided alike, so that the calibration tokens need not be run again for it.
    """
    largest = largest_inputs(model, calibration)
    for name, divide in _pairs(model):
        consumer = model.get_submodule(name)
        assert isinstance(consumer, nn.Linear)
        scale = largest[name].clamp(min=1e-5) ** strength / consumer.weight.abs().amax(0).clamp(min=1e-5) ** (
            1 - strength
        )
        applied = divide(scale / scale.log().mean().exp())
        consumer.weight.mul_(applied)
        largest[name] = largest[name] / applied
    return largest


def largest_inputs(model: GPT, calibration: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """max|x_j| of every input channel of each linear layer, over the calibration tokens: (I,) each."""
    seen: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        largest = x.abs().amax(0)
        seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

    watch_inputs(model, calibration, see)
    return seen


def watch_inputs(model: GPT, calibration: Sequence[CalibrationBatch], see: Callable[[str, Tensor], None]) -> None:
    """Run the calibration tokens; `see(name, x)` gets the input x (N,I) of every linear layer each time it runs. The
    head itself is not run: nothing reads its logits, which are a large part of the work where vocabularies are."""
    with watching(model, see):
        for batch in calibration:
            hidden = model.hidden(batch.inputs, documents=batch.documents)
            if isinstance(model.head, nn.Linear):
                see("head", hidden.flatten(0, -2))


@contextlib.contextmanager
def watching(module: nn.Module, see: Callable[[str, Tensor], None], prefix: str = "") -> Iterator[None]:
    """While it lasts `see(name, x)` gets the input x (N,I) of every linear layer in `module`, its name after
    `prefix`."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(prefix + name, inputs[0].flatten(0, -2))

    linear = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_pre_hook(hook(name)) for name, part in linear]
    try:
        yield
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

    def gains(norm: Norm) -> Callable[[Tensor], Tensor]:
        def divide(scale: Tensor) -> Tensor:
            norm.weight.copy_(norm.gain / scale - norm.offset)
            return rows(norm.bias)(scale)

        return divide

    def values(qkv: nn.Linear) -> Callable[[Tensor], Tensor]:
        def divide(scale: Tensor) -> Tensor:
            heads = len(scale) // config.head_width
            kv_heads = (qkv.out_features // config.head_width - heads) // 2
            group = scale.view(kv_heads, -1, config.head_width).amax(1)  # heads of a group share their values
            kv_width = group.numel()
            rows(qkv.weight[-kv_width:], None if qkv.bias is None else qkv.bias[-kv_width:])(group.flatten())
            return group[:, None].expand(-1, heads // kv_heads, -1).flatten()

        return divide

    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"blocks.{index}."
        # a part that is not there, or that a step replaced, is passed over
        attention, attention_norm, ff, ff_norm = block.attention, block.attention_norm, block.ff, block.ff_norm
        if attention is not None and attention_norm is not None and isinstance(attention.qkv, nn.Linear):
            yield name + "attention.qkv", gains(attention_norm)
            if isinstance(attention.out, nn.Linear):
                yield name + "attention.out", values(attention.qkv)
        if not isinstance(ff, FeedForward) or ff_norm is None or not isinstance(ff.up, nn.Linear):
            continue  # experts share one input with their router
        yield name + "ff.up", gains(ff_norm)
        # max(0, x/s) = max(0, x)/s, so the scale passes through
        if config.activation in ("relu", "relu2") and isinstance(ff.down, nn.Linear):
            power = 0.5 if config.activation == "relu2" else 1.0
            up = rows(ff.up.weight, ff.up.bias)
            yield name + "ff.down", lambda scale, up=up, power=power: up(scale**power) ** (1 / power)  # type: ignore[misc]
