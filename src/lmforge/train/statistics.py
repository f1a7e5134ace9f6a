"""What happens inside a network while it trains: sizes of weights, gradients and activations by layer, and the noise of
the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lmforge.model.gpt import GPT
from lmforge.parallel.layout import Layout


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: blocks.3.ff.up.weight → blocks.3, embed.weight → embed."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


@torch.no_grad()
def weights_and_gradients(model: GPT, layout: Layout) -> dict[str, dict[str, float]]:
    """By layer, the root mean squares of weights and of gradients of the whole network: {layer: {"weights",
    "gradients"}}. All processes take part."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
    weights = layout.squares(trained)
    gradients = layout.squares({name: p.grad for name, p in trained.items() if p.grad is not None})
    sums: dict[str, list[float]] = {}
    for name, shape in layout.shapes(model).items():
        if weights.get(name) or gradients.get(name):
            total = sums.setdefault(layer_of(name), [0.0, 0.0, 0.0])
            for place, value in enumerate((weights[name], gradients[name], shape.numel())):
                total[place] += value
    return {
        layer: {"weights": math.sqrt(w / count), "gradients": math.sqrt(g / count)}
        for layer, (w, g, count) in sums.items()
    }


class Activations:
    """While it is entered, notes the root mean square and the largest size of each block's output: {layer: {"rms",
    "largest"}}."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_layer: dict[str, dict[str, float]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Activations:
        for name, module in self.model.named_modules():
            if name in ("embed", "norm") or (name.startswith("blocks.") and name.count(".") == 1):
                self._hooks.append(module.register_forward_hook(partial(self._note, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output  # of reversible blocks the first stream
        values = output.detach().float()
        self.by_layer[name] = {"rms": float(values.square().mean().sqrt()), "largest": float(values.abs().max())}


class NoiseScale:
    """The batch size, in tokens, at which the noise of the gradient is as large as the gradient: tr(Σ)/|G|² (McCandlish
    et al. 2018, appendix A.1).

    From the squared norms of one gradient over few tokens and over many; both estimates are averaged over the times it
    was measured. A batch far below it wastes steps, one far above it wastes tokens.
    """

    KEPT = 0.9  # of the earlier average, at each measurement

    def __init__(self) -> None:
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"noise": self.noise, "signal": self.signal}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """As it was at a checkpoint; with an empty state, before the first step."""
        self.noise: float | None = state.get("noise")
        self.signal: float | None = state.get("signal")

    def add(self, few: float, few_square: float, many: float, many_square: float) -> None:
        """A measurement: |g|² of the mean gradient over `few` and over `many` tokens (eq. A.2)."""
        noise = (few_square - many_square) / (1 / few - 1 / many)
        signal = (many * many_square - few * few_square) / (many - few)
        self.noise = noise if self.noise is None else self.KEPT * self.noise + (1 - self.KEPT) * noise
        self.signal = signal if self.signal is None else self.KEPT * self.signal + (1 - self.KEPT) * signal

    @property
    def tokens(self) -> float | None:
        """The noise scale; None before a measurement, or where noise hides the gradient."""
        return (
            self.noise / self.signal
            if self.noise is not None and self.signal is not None and self.noise > 0 and self.signal > 0
            else None
        )
