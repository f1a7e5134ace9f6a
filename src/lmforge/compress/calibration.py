"""What calibration rows show of the inputs of matrices: rows packed as training packs them, never padded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import watch_inputs, watching
from lmforge.formats.native import is_tied
from lmforge.model.cache import ForwardContext
from lmforge.model.gpt import GPT


def input_grams(model: GPT, calibration: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """Σ x xᵀ over all calibration tokens of the input of each linear layer: (I,I) float32 by name; layers that share
    their input share the matrix's values, not its memory. An expert that no token chose has none."""
    grams: dict[str, Tensor] = {}
    with torch.no_grad():
        watch_inputs(model, calibration, _adding(grams))
    return grams


def _adding(grams: dict[str, Tensor]) -> Callable[[str, Tensor], None]:
    """What adds inputs (N,I) to the Gram matrices by name."""

    def see(name: str, x: Tensor) -> None:
        x = x.float()
        if name in grams:
            grams[name].addmm_(x.t(), x)
        elif len(x):
            grams[name] = x.t() @ x

    return see


class _Reached(Exception):
    """The first block is reached: what comes after is not run."""


@torch.no_grad()
def grams_by_block(model: GPT, calibration: Sequence[CalibrationBatch]) -> Iterator[dict[str, Tensor]]:
    """The Gram matrices block by block, and last those of the head, each once the caller has changed the blocks before
    it: inputs are what those now give. One block's matrices are held at a time. The head's go by its name, and by that
    of the embedding where they are one. Reversible networks, whose blocks take two streams, give all at once.
    """
    if model.config.residual == "reversible":
        yield _with_tied(model, input_grams(model, calibration))
        return
    states: list[tuple[Tensor, ForwardContext]] = []

    def reached(_: nn.Module, inputs: tuple[Tensor, ForwardContext]) -> None:
        states.append(inputs)
        raise _Reached

    handle = model.blocks[0].register_forward_pre_hook(reached)
    try:
        for batch in calibration:
            with contextlib.suppress(_Reached):
                model(batch.inputs, documents=batch.documents)
    finally:
        handle.remove()
    for number, block in enumerate(model.blocks):
        grams: dict[str, Tensor] = {}
        with watching(block, _adding(grams), f"blocks.{number}."):
            for x, forward_ctx in states:
                block(x, forward_ctx)
        yield grams
        states = [(block(x, forward_ctx), forward_ctx) for x, forward_ctx in states]
    if model.norm is not None and model.head is not None:
        last: dict[str, Tensor] = {}
        for x, _ in states:
            _adding(last)("head", model.norm(x).flatten(0, -2))
        yield _with_tied(model, last)


def _with_tied(model: GPT, grams: dict[str, Tensor]) -> dict[str, Tensor]:
    return grams | {"embed": grams["head"]} if is_tied(model) and "head" in grams else grams
