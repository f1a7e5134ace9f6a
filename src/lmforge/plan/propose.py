"""`lmforge new TEXTS`: a recipe sized to these texts and this machine.

texts ─look at 2 MB─▶ kind, field, bytes ─▶ vocabulary, context, holdout ─┐
machine ─▶ operations in five minutes ────────────────────────────────────┴─▶ layers, width, batch, steps ─▶ TOML
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from lmforge.plan.hardware import Hardware
from lmforge.plan.size import (
    BUDGET_SECONDS,
    MICRO_BATCH,
    MOST_EPOCHS,
    TOKENS_PER_PARAMETER,
    Shape,
    choose_shape,
    heads_for,
    ngram_rows_for,
)
from lmforge.plan.texts import Texts, look_at
from lmforge.recipe import parse_recipe

KNESER_NEY_BYTES = 300_000_000  # text beyond which the n-gram baseline takes longer than the model


def recipe_for(texts: Path, hardware: Hardware) -> str:
    """The TOML of a recipe for `texts` (a folder, a text, JSONL or Parquet file) that trains about `BUDGET_SECONDS`
    here.

    Raises:
        InputError: nothing readable there, broken files, or too little text to hold some of it out.
    """
    looked_at = look_at(texts)
    shape = choose_shape(looked_at, hardware)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", texts.resolve().stem).strip("-._") or "model"
    text = _toml(name, looked_at, shape, hardware)
    parse_recipe(tomllib.loads(text), where="the new recipe")
    return text


def _toml(name: str, texts: Texts, shape: Shape, hardware: Hardware) -> str:
    epochs = shape.steps * shape.batch_tokens / max(1, texts.train_tokens)
    speed = f"{hardware.matrix_flops / 1e9:,.0f} GFLOP/s measured" if hardware.matrix_flops else "speed not measured"
    tasks = ["bits_per_byte", "completions_parse", "generation_speed"]
    evaluate = (
        ""
        if texts.bytes <= KNESER_NEY_BYTES
        else f"""
[evaluate]
tasks = {json.dumps(tasks)}  # kneser_ney would take longer on so much text than training
"""
    )
    field = f"\ntext_field = {_quoted(texts.source.text_field)}" if texts.source.text_field != "text" else ""
    others = (
        f"\n# Also there, and not used: {texts.others}. Add another [[corpus.sources]] to use them.\n"
        if texts.others
        else ""
    )
    minutes = max(1, round(shape.seconds / 60))
    micro = (
        f"micro_batch_tokens = {MICRO_BATCH}  # what is in memory at once\n" if shape.batch_tokens > MICRO_BATCH else ""
    )
    rate = 3e-3 * min(1.0, 256 / shape.width)
    return f"""# Written by `lmforge new` for about {texts.bytes / 1e6:,.3g} MB of text
# and this machine: {hardware.device}, {hardware.device_memory_bytes / 2**30:.1f} GiB, {speed}.
name = {_quoted(name)}
seed = 1
{others}
[corpus]
holdout = {texts.holdout}  # share kept out of training: enough for several rows in each of its parts

[[corpus.sources]]
kind = {_quoted(texts.source.kind)}
path = {_quoted(str(texts.source.path))}{field}

[tokens]
vocab_size = {shape.vocab_size}  # at most about the root of the bytes of text, and no dearer to predict than the blocks
context = {texts.context}  # tokens seen at once

# The largest network that {BUDGET_SECONDS // 60} minutes and this text are enough for:
# about {TOKENS_PER_PARAMETER} tokens for each parameter of its blocks' matrices.
[model]
layers = {shape.layers}
d_model = {shape.width}
heads = {heads_for(shape.width)}
activation = "relu2"
norm = "layernorm"
qk_norm = true
ngram_rows = {ngram_rows_for(texts)}  # hashed bigrams and trigrams: better predictions for no matrix work

[train]
steps = {shape.steps}  # about {minutes} min here, {epochs:.1f} passes over the text (at most {MOST_EPOCHS})
batch_tokens = {shape.batch_tokens}  # about a thousandth of all tokens
{micro}optimizer = "muon"
matrix_lr = 0.02
peak_lr = {rate:.1e}  # for embeddings and gains
final_lr = 0.0
weight_decay = 0.0
{evaluate}"""


def _quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
