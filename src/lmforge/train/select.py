"""What the end of a run keeps of its weights, and which of them, or of their averages, becomes the model.

    steps of the end ─keep─▶ moving average, snapshots ─┐
    checkpoints ─▶ the best ────────────────────────────┴─choose─▶ ensemble.json, model/ (with adapter/ beside LoRA)

Every rank takes part, since a layout may need them all to score; the main rank's scores decide, and it writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.model.gpt import GPT
from lmforge.parallel.layout import Layout
from lmforge.parallel.shares import like_part
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, write_atomic
from lmforge.train.adapters import ADAPTER, adapter_tensors, averaged, holding, merged, write_adapter
from lmforge.train.checkpoint import Checkpoints, write_snapshot
from lmforge.train.ensemble import Candidate, Choice, MovingAverage, snapshot_steps
from lmforge.train.origin import kept_origin
from lmforge.train.validate import Validator


class Selection:
    """The weights that a run can choose from."""

    def __init__(
        self, layout: Layout, model: GPT, recipe: Recipe, steps: int, checkpoints: Checkpoints, tokenizer: Path
    ) -> None:
        self.layout, self.model, self.recipe, self.steps = layout, model, recipe, steps
        self.checkpoints, self.tokenizer, self.out = checkpoints, tokenizer, checkpoints.directory.parent
        count = recipe.train.ensemble
        self.moving = MovingAverage(model, steps) if count else None
        self.snapshots = set(snapshot_steps(steps, count)) - {steps}  # the last is a checkpoint

    def average(self) -> dict[str, Tensor] | None:
        """The moving average of the weights, whole, for the checkpoint; on the main rank. All take part."""
        if not self.moving:
            return None
        parameters = dict(self.model.named_parameters())
        parts = {name: like_part(parameters[name], part) for name, part in self.moving.state_dict().items()}
        return self.layout.gathered(parts, {name: name for name in parts})

    def restore(self, step: int) -> None:
        """As it was after `step` steps."""
        if self.moving:
            whole = self.checkpoints.average(step) if step else {}
            self.moving.load_state_dict(
                {
                    name: self.layout.part(name, parameter, whole[name])
                    for name, parameter in self.model.named_parameters()
                    if name in whole
                }
            )

    def keep(self, step: int) -> None:
        """What the choice at the end needs of the weights after `step` steps."""
        if self.moving:
            self.moving.update(step)
        if step in self.snapshots:
            state = self.layout.full_state(self.model)
            if self.layout.is_main:
                write_snapshot(self.snapshot(step), self.model, step, self.tokenizer, state)

    def snapshot(self, step: int) -> Path:
        """Where the weights of a step stand alone."""
        return self.out / "snapshots" / self.checkpoints.path(step).name

    def saved(self, step: int) -> Path:
        """Where the weights of a step that was kept are."""
        return self.snapshot(step) if step in self.snapshots else self.checkpoints.path(step)

    def choose(self, best_step: int, validator: Validator) -> tuple[Candidate, dict[str, Tensor], list[Candidate]]:
        """The best candidate, its weights, and all of them. Every rank takes part and goes by the main rank's scores;
        afterwards the network holds some candidate's weights."""

        def score(weights: Mapping[str, Tensor]) -> Tensor:
            adapted = bool(adapter_tensors(self.model))
            self.layout.load_state(self.model, holding(self.model, weights) if adapted else weights)
            nats = validator.nats()
            return self.layout.broadcast_tensor(nats)

        last = {self.steps} if self.recipe.train.ensemble else set()
        choice = Choice(lambda step: model_tensors(load_model(self.saved(step))), score, validator.text_bytes)
        moving = None
        if self.moving and self.layout.shares_network:
            moving = self.layout.everywhere(
                self.model, {**self.layout.full_state(self.model), **(self.average() or {})}
            )
        elif self.moving:
            weights = {name: weight.cpu() for name, weight in self.moving.weights.items()}
            moving = (
                merged(self.model, weights) if adapter_tensors(self.model) else {**model_tensors(self.model), **weights}
            )
        best, weights = choice.choose([*({best_step} | last | self.snapshots)], moving, tell=self.layout.is_main)
        return best, weights, choice.table

    def write(self, model_out: Path, best_step: int, validator: Validator) -> dict[str, Any]:
        """Choose, and write the model; the table of candidates and the name of the chosen one, as ensemble.json."""
        best, weights, candidates = self.choose(best_step, validator)
        table = {"chosen": best.name, "candidates": [each.row() for each in candidates]}

        def write() -> None:
            with atomic_directory(model_out) as temporary:
                notes = {"made_from": best.row(), "valid_bits_per_byte": best.bits_per_byte, **kept_origin(self.out)}
                write_model(temporary, self.model.config, weights, self.tokenizer, notes=notes)
                if self.recipe.finetune and self.recipe.finetune.lora:
                    adapter, base = self.adapter_of(best), self.recipe.finetune.base
                    write_adapter(temporary / "adapter", adapter, base, self.recipe.finetune.lora)
            write_atomic(self.out / "ensemble.json", json.dumps(table, indent=1) + "\n")

        self.layout.on_main(write)
        return table

    def adapter_of(self, chosen: Candidate) -> dict[str, Tensor]:
        """The adapter that gives the chosen model."""
        if not chosen.members:
            assert self.moving
            return self.moving.weights
        return averaged([load_file(self.saved(step) / ADAPTER) for step in chosen.members])


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
