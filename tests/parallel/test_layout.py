"""A layout is one class and one line to register it; training reaches devices, ranks and collectives through it
alone."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lmforge.train
from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.parallel.data_parallel import DataParallel
from lmforge.parallel.layout import LAYOUTS, Layout, MicroBatchWork, Result, join_layout
from lmforge.recipe import load_recipe
from lmforge.recipe.schema import Parallel
from lmforge.train.loop import train
from tests.train.runs import losses

BELOW_LAYOUTS = ("torch.distributed", "lmforge.parallel.mesh", "lmforge.parallel.agree")


class InHalves(Layout):
    """A toy: one process, which keeps its gradients in two halves between the backward pass and the sum."""

    ran = 0  # micro-batches

    def apply(self, model: GPT) -> GPT:
        self.model, self.halves = model, []
        return model

    def prepare(self, replicas: int, threads: int) -> None:
        torch.set_num_threads(threads)

    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        nats = torch.zeros((), dtype=torch.float64)
        for micro_batch in work.micro_batches(rows):
            loss = work.loss(self.model, micro_batch)
            (loss * work.factor).backward()
            nats += loss.detach()
            work.after_backward(self.model, micro_batch)
            InHalves.ran += 1
        self.halves = [p.grad.flatten().tensor_split(2) for p in self.model.parameters()]
        self.model.zero_grad(set_to_none=True)
        return nats

    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        return [work(self.model, rows)]

    def sum_gradients(self, model: nn.Module) -> None:
        for parameter, halves in zip(model.parameters(), self.halves, strict=True):
            parameter.grad = torch.cat(halves).view_as(parameter)

    def gradient_norm(self, model: nn.Module) -> Tensor:
        return torch.stack([p.grad.norm() for p in model.parameters()]).norm()

    def clip_gradients(self, model: nn.Module, largest: float, norm: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, torch.tensor(norm))

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        model.load_state_dict(dict(state), strict=False)


@pytest.fixture
def _toy() -> Iterator[None]:
    LAYOUTS.register("in halves", InHalves)  # the one line
    yield
    LAYOUTS._parts.pop("in halves")


@pytest.mark.usefixtures("_toy")
def test_a_toy_layout_trains_the_same_weights(tiny_run: Path, tmp_path: Path) -> None:
    plain = train(load_recipe(tiny_run / "recipe.toml"), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    recipe = load_recipe(tiny_run / "recipe.toml", ["parallel.layout='in halves'"])
    toy = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert InHalves.ran == 24  # two micro-batches in each of 12 steps
    assert toy["weights_sha256"] == plain["weights_sha256"]
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_an_unknown_layout_is_refused_with_those_there_are() -> None:
    assert isinstance(join_layout(Parallel()), DataParallel)
    with pytest.raises(InputError, match=r"parallel\.layout.*'data-paralel' is not known; did you mean"):
        join_layout(Parallel(layout="data-paralel"))


def test_whole_states_go_out_and_in_with_tied_tensors_once() -> None:
    layout = join_layout(Parallel())
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    state = {name: tensor.clone() for name, tensor in layout.full_state(model).items()}
    assert list(state) == ["embed.weight"]
    layout.load_state(model, {"embed.weight": torch.ones(4, 3)})
    assert torch.equal(model["head"].weight, torch.ones(4, 3))
    layout.load_state(model, state)
    assert torch.equal(model["head"].weight, state["embed.weight"])


def test_training_knows_ranks_and_collectives_through_layouts_alone() -> None:
    for path in Path(lmforge.train.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in (module, *names):
                assert not name.startswith(BELOW_LAYOUTS), path
            assert not (isinstance(node, ast.Attribute) and node.attr in ("all_reduce", "barrier")), path
            assert not (isinstance(node, ast.Constant) and node.value in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), path
