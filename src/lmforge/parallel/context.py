"""The tokens of a row over processes."""

from __future__ import annotations

from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread


def apply_context(model: GPT, mesh: Mesh, spread: Spread) -> None:
    """Let a pass work on this process's tokens of each row alone. Losses that it gives are summed over the axis by the
    layout (`MeshLayout.forward_backward`)."""
    raise NotImplementedError
