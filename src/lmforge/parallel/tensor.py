"""Matrices over processes, and the tokens between them."""

from __future__ import annotations

from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread


def apply_tensor(model: GPT, mesh: Mesh, spread: Spread) -> None:
    """Leave this process its part of every matrix."""
    raise NotImplementedError
