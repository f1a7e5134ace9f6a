"""The layers of a network over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.parallel.layout import MicroBatchWork, Result
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread
from lmforge.recipe.schema import Parallel


def apply_pipeline(model: GPT, mesh: Mesh, spread: Spread, settings: Parallel) -> None:
    """Leave this process its layers, in place; names stay. Enters what remains as `spread.enter(name,
    own="pipeline")`."""
    raise NotImplementedError


class PipelineRunner:
    """Runs a schedule over the stages; made when the network has its last form (after sharding)."""

    def __init__(self, model: GPT, mesh: Mesh, settings: Parallel) -> None:
        raise NotImplementedError

    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        """As `Layout.forward_backward`; the same sum of losses on all stages."""
        raise NotImplementedError

    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """As `Layout.forward`, the results on all stages."""
        raise NotImplementedError

    def sum_tied(self, model: GPT) -> None:
        """The gradient of a tied embedding becomes the sum of its copies on the first and the last stage."""
        raise NotImplementedError

    def shared_names(self) -> dict[str, int]:
        """Parameters that more than one stage holds a copy of, and how many."""
        raise NotImplementedError

    def close(self, *_: Any) -> None:
        """Forget the stages."""
        raise NotImplementedError
