"""How each parameter of a network lies over the axes of a mesh: which part of it is here, and what its gradient is.

    whole ─cut─▶ this process's part          parts of all ─joined─▶ whole
    gradient here: of this process's rows and tokens, or equal on all, by axis ─▶ the axes that it is summed over

The parts of a layout (`tensor`, `expert`, …) enter here what they did to which parameter; sums of gradients, norms,
initial values, checkpoints and Muon read it, and know nothing else of layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lmforge.parallel.mesh import AXES, Mesh

# processes along these axes have other rows or other tokens: a gradient is that of their part unless a layout says else
PARTIAL = frozenset(("data", "shard", "expert", "context"))


@dataclasses.dataclass(frozen=True)
class Cut:
    """A parameter's parts along one dimension: process i of an axis has the slices `parts[i]` of the whole, one after
    another."""

    axis: str
    shape: tuple[int, ...]  # of the whole
    dim: int
    parts: tuple[tuple[range, ...], ...]

    def part(self, whole: Tensor, index: int) -> Tensor:
        """What process `index` has of a whole tensor, in memory of its own."""
        pieces = [whole.narrow(self.dim, piece.start, len(piece)) for piece in self.parts[index]]
        return torch.cat(pieces, self.dim)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts of all processes → the whole."""
        whole = parts[0].new_empty(self.shape)
        for own, slices in zip(parts, self.parts, strict=True):
            begin = 0
            for piece in slices:
                whole.narrow(self.dim, piece.start, len(piece)).copy_(own.narrow(self.dim, begin, len(piece)))
                begin += len(piece)
        return whole


@dataclasses.dataclass(frozen=True)
class Placement:
    """One parameter. `cut`: it is a part of a whole. `partial`: axes along which each process's gradient is a summand
    of the whole one; along all others it is the same on every process, or another parameter's. `own`: axes along which
    other processes do not have this parameter at all (experts, layers)."""

    cut: Cut | None = None
    partial: frozenset[str] = PARTIAL
    own: frozenset[str] = frozenset()


class Spread:
    """The placements of a network's parameters, by name; a parameter that nobody entered is whole on every process."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.placements: dict[str, Placement] = {}

    def __getitem__(self, name: str) -> Placement:
        return self.placements.get(name, Placement())

    def enter(
        self, name: str, cut: Cut | None = None, partial: Sequence[str] = (), whole: Sequence[str] = (), own: str = ""
    ) -> None:
        """Add to what is known of a parameter: its cut; axes along which its gradient is, in addition to the usual
        ones, `partial`, or is not (`whole`); the axis along which it is this process's `own`."""
        before = self[name]
        self.placements[name] = Placement(
            cut or before.cut,
            (before.partial | set(partial)) - set(whole) - ({own} if own else set()),
            before.own | ({own} if own else set()),
        )

    def summed_over(self, name: str) -> tuple[str, ...]:
        """The axes, of those that have more than one process, over which a parameter's gradient has to be summed."""
        partial = self[name].partial
        return tuple(axis for axis in AXES if axis in partial and self.mesh.sizes[axis] > 1)

    def copies(self, name: str) -> int:
        """How many processes hold the same part of a parameter (where it is not sharded)."""
        placement = self[name]
        distinct = placement.own | ({placement.cut.axis} if placement.cut else set())
        return self.mesh.size(*(axis for axis in AXES if axis not in distinct and axis != "pipeline"))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor in the shape of a parameter."""
        cut = self[name].cut
        return whole if cut is None else cut.part(whole, self.mesh.index(cut.axis))

    def shape(self, name: str, here: Tensor) -> torch.Size:
        """The shape of the whole parameter of which `here` (not sharded) is a part."""
        cut = self[name].cut
        return here.shape if cut is None else torch.Size(cut.shape)


def even_parts(length: int, count: int) -> list[range]:
    """0, 1, …, length − 1 in `count` parts whose lengths differ by one at most."""
    return [range(length * i // count, length * (i + 1) // count) for i in range(count)]
