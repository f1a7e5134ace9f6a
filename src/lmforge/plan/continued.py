"""`lmforge new TEXTS --base MODEL`: a recipe that goes on from a model on these texts, as far as this machine gets."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from lmforge.formats.base import name_as_kept, shape_of
from lmforge.model.config import GPTConfig
from lmforge.plan.cost import TRAINING, flops_per_token, parameters
from lmforge.plan.hardware import Hardware
from lmforge.plan.simulate import expected_utilization
from lmforge.plan.size import BUDGET_SECONDS, UNMEASURED_FLOPS
from lmforge.plan.texts import look_at
from lmforge.recipe import parse_recipe
from lmforge.recipe.base import CONTEXT, PEAK_LR

MOST_EPOCHS = 3  # a trained model has seen much; more passes over little text teach it that text by heart
LEAST_STEPS, BATCH = 20, 1024
SHORT = 256  # tokens of a row where texts are few, or short


def continued_for(texts: Path, base: str, hardware: Hardware) -> str:
    """The TOML of a recipe that trains `base` about `BUDGET_SECONDS` more on `texts`.

    Raises:
        InputError: nothing readable in `texts`, too little text, or no model that can be trained in `base`.
    """
    looked_at = look_at(texts)
    config = GPTConfig(**shape_of(base))
    context = config.context if config.positions == "learned" else min(CONTEXT, config.context)
    if looked_at.train_tokens < 200 * context and config.positions != "learned":
        context = min(SHORT, context)
    speed = (hardware.matrix_flops or UNMEASURED_FLOPS) * expected_utilization(config, hardware.gpu is not None)
    per_token = TRAINING * sum(flops_per_token(config, context).values()) / speed
    tokens = int(min(BUDGET_SECONDS / per_token, MOST_EPOCHS * looked_at.train_tokens))
    batch = max(context, BATCH)
    steps = max(LEAST_STEPS, tokens // batch)
    minutes = max(1, round(steps * batch * per_token / 60))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", texts.resolve().stem).strip("-._") or "model"
    field = f"\ntext_field = {json.dumps(looked_at.source.text_field)}" if looked_at.source.text_field != "text" else ""
    text = f"""# Written by `lmforge new --base` for about {looked_at.bytes / 1e6:,.3g} MB of text: a model of
# {sum(parameters(config).values()) / 1e6:,.0f} M parameters goes on learning from it. Its network and vocabulary stay.
name = {json.dumps(f"{name}-continued")}
seed = 1

[corpus]
holdout = {looked_at.holdout}

[[corpus.sources]]
kind = {json.dumps(looked_at.source.kind)}
path = {json.dumps(str(looked_at.source.path), ensure_ascii=False)}{field}

[model]
base = {json.dumps(name_as_kept(base, Path()), ensure_ascii=False)}

[tokens]
context = {context}  # tokens of a row; the model reads up to {config.context:,}

[train]
steps = {steps}  # about {minutes} min here, {steps * batch / max(1, looked_at.train_tokens):.1f} passes over the text
batch_tokens = {batch}
peak_lr = {PEAK_LR}  # a fraction of what such a network is trained with, so that it forgets little
validate_tokens = {max(4096, 4 * context)}
ensemble = 0

[evaluate]
tasks = ["bits_per_byte", "generation_speed"]
max_tokens = 16384
"""
    parse_recipe(tomllib.loads(text), where="the new recipe")
    return text
