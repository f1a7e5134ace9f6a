"""Small networks, rows and steps for the tests of layouts, without a run around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from bench.quality.layouts import join_for
from torch import Tensor, nn

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel import agree
from lmforge.parallel.mesh_layout import MeshLayout
from lmforge.recipe.schema import Parallel

ROWS, LENGTH = 7, 24
Gradients = dict[str, Tensor]


def small(**more: Any) -> GPTConfig:
    return GPTConfig(**({"vocab_size": 97, "context": LENGTH, "layers": 4, "d_model": 16, "heads": 2, "kv_heads": 2,
                         "d_ff": 24} | more))  # fmt: skip


def rows_of(step: int, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, documents: ragged, a quarter of the tokens not counted, one row not at all."""
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(1, 97, (rows, LENGTH + 1), generator=generator)
    targets = text[:, 1:].clone()
    targets[torch.rand(rows, LENGTH, generator=generator) < 0.25] = -1
    targets[2] = -1
    targets[3, 5:] = -1
    documents = (torch.rand(rows, LENGTH, generator=generator) < 0.2).long().cumsum(1)
    return text[:, :-1].contiguous(), targets, documents


@dataclasses.dataclass
class Work:
    """Micro-batches of `size` rows of a step (`MicroBatchWork`)."""

    step: int
    size: int
    rows: int = ROWS

    def __post_init__(self) -> None:
        self.batch = rows_of(self.step, self.rows)
        self.factor = 1 / int((self.batch[1] >= 0).sum())

    def micro_batches(self, rows: range) -> Iterable[range]:
        return [range(i, min(i + self.size, rows.stop)) for i in range(rows.start, rows.stop, self.size)]

    def tensors(self, rows: range) -> tuple[Tensor, Tensor, Tensor]:
        inputs, targets, documents = (x[rows.start : rows.stop] for x in self.batch)
        return inputs, targets, documents

    def loss(self, network: nn.Module, rows: range) -> Tensor:
        value: Tensor = network.loss(*self.tensors(rows))  # type: ignore[operator]
        return value

    def after_backward(self, network: nn.Module, rows: range) -> None:
        pass


def alone(config: GPTConfig, size: int, step: int = 0, rows: int = ROWS) -> tuple[float, Gradients]:
    """Loss and gradients of a step in one process."""
    model, work, nats = begun(config), Work(step, size, rows), 0.0
    for piece in work.micro_batches(range(rows)):
        loss = work.loss(model, piece)
        (loss * work.factor).backward()
        nats += float(loss.detach())
    return nats, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def begun(config: GPTConfig) -> GPT:
    model = GPT(config)
    model.initialise(0)
    return model


def laid_out(config: GPTConfig, sizes: dict[str, int], **keys: Any) -> tuple[MeshLayout, GPT]:
    """On one of the processes: the layout, and what this process has of the network."""
    layout = MeshLayout(join_for(sizes), Parallel(**(sizes | keys)))
    model = layout.apply(begun(config))
    layout.prepare(1, 1)
    return layout, model


def together(
    config: GPTConfig, sizes: dict[str, int], size: int, step: int = 0, rows: int = ROWS, **keys: Any
) -> tuple[float, Gradients, float]:
    """On one of the processes: the loss of its rows; on the main one all gradients, whole; the norm."""
    layout, model = laid_out(config, sizes, **keys)
    share = range(rows * layout.data_rank // layout.data_size, rows * (layout.data_rank + 1) // layout.data_size)
    nats = float(layout.forward_backward(Work(step, size, rows), share))
    layout.sum_gradients(model)
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: gradient.clone() for name, gradient in layout.gathered(own, {name: name for name in own}).items()}
    return nats, whole, float(layout.gradient_norm(model))


def check_same(result: tuple[float, Gradients, float], expected: tuple[float, Gradients]) -> None:
    """Loss, every gradient and the norm."""
    assert agree.is_main()
    assert abs(result[0] / expected[0] - 1) < 1e-5
    assert result[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float((result[1][name] - gradient).norm()) < 1e-5 * float(gradient.norm()) + 1e-9, name
    norm = float(torch.stack([gradient.norm() for gradient in expected[1].values()]).norm())
    assert abs(result[2] / norm - 1) < 1e-5
