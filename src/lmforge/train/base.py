"""Training that goes on from a model of any format (`model.base`), or takes it as it is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lmforge.formats.base import continued, load_base
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import model_tensors, origin_of, write_model
from lmforge.machine import cores
from lmforge.parallel.layout import join_layout
from lmforge.plan.auto import with_chosen_layout
from lmforge.progress import log_once
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory
from lmforge.train.data import TrainingData
from lmforge.train.select import hash_weights
from lmforge.train.validate import Validator


def base_of(recipe: Recipe) -> LoadedModel:
    """The model that a recipe goes on from, with what the recipe says of its training. It reads as long texts as it
    did: `tokens.context` is the length of the rows.

    Raises:
        InputError: no model there, or not one that can be read.
    """
    assert recipe.model.base is not None
    return continued(load_base(recipe.model.base), recompute=recipe.model.recompute, z_loss=recipe.train.z_loss)


def take_base(recipe: Recipe, tokens_dir: Path, out: Path, model_out: Path) -> dict[str, Any]:
    """Write the base as the model of a run without training (`train.steps` = 0); its figures. Every rank calls it.

    Raises:
        InputError: as `base_of`.
        LmforgeError: the disk is full.
    """
    layout = join_layout(with_chosen_layout(recipe).parallel)
    with contextlib.closing(layout):
        base, data = base_of(recipe), TrainingData(tokens_dir)
        rows = data.validation(recipe)
        tensors = model_tensors(base.model)  # before a layout cuts it
        model = layout.apply(base.model)
        layout.prepare(1, recipe.train.threads or cores())
        validator = Validator(layout, model, rows, rows.text_bytes(data.token_bytes), "fp32")
        bits, _ = validator.bits_per_byte()

        def write() -> None:
            with atomic_directory(model_out) as folder:
                notes = {**base.notes, "made_from": "the base as it is", "valid_bits_per_byte": bits}
                write_model(folder, base.config, tensors, data.tokenizer_file, notes=notes)
            out.mkdir(parents=True, exist_ok=True)

        layout.on_main(write)
    log_once(f"train: no steps: the model is {base.name} as it is, {bits:.4f} bits per byte of validation text")
    return {
        "steps": 0,
        "tokens": 0,
        "seconds": 0.0,
        "tokens_per_second": 0,
        "valid_bits_per_byte": bits,
        "weights_sha256": hash_weights(tensors),
        "best_step": 0,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "way": "not trained",
        "chosen": "base",
        "candidates": [],
        "trained_parameters": 0,
        **origin_of(base.notes),
    }
