"""Experts of a layer over processes."""

from __future__ import annotations

from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread


def apply_expert(model: GPT, mesh: Mesh, spread: Spread) -> None:
    """Leave this process its experts, and send tokens to those that others have. Enters the experts' parameters as
    `spread.enter(name, own="expert")`."""
    raise NotImplementedError
