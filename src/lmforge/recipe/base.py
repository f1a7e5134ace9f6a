"""`model.base`: what a recipe that goes on from another model takes from it, and defaults that suit that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.recipe.registry import BASES
from lmforge.recipe.schema import Model

# rows of training; a model that reads thousands of tokens learns a text as well from shorter rows, at less memory
CONTEXT = 1024
# a tenth of what such networks were trained with: enough to learn, too little to forget much (Ibrahim et al. 2024,
# "Simple and Scalable Strategies to Continually Pre-train Large Language Models", section 6)
PEAK_LR = 1e-4
# keys of [model] that may differ from those of the base
OWN = ("base", "recompute")


def take_model_base(data: dict[str, Any], folder: Path) -> None:
    """Complete a recipe that goes on from `model.base`: its network, vocabulary and context.

    The resolved recipe of a run states all of that itself, so it does not depend on what became of the base.

    Raises:
        InputError: no model there; or the recipe states another network, or another vocabulary.
    """
    sections = [data.setdefault(name, {}) for name in ("model", "tokens", "train")]
    if not all(isinstance(section, dict) for section in sections):
        return  # parsing tells what is wrong
    model, tokens, train = sections
    needed = {name for name, field in Model.model_fields.items() if field.default is not None}
    if needed <= model.keys() and {"vocab_size", "context"} <= tokens.keys():
        return
    shape: dict[str, Any] = BASES["shape"](model["base"], folder)
    model["base"] = BASES["name"](model["base"], folder)
    for section, stated, key in [("model", model, key) for key in Model.model_fields if key in shape] + [
        ("tokens", tokens, "vocab_size")
    ]:
        value = stated.setdefault(key, shape[key])
        value = (value,) if key == "attention" and isinstance(value, str) else value
        if key not in OWN and _plain(value) != _plain(shape[key]):
            raise InputError(
                f"{section}.{key}: {value} is not {shape[key]}, that of model.base; "
                "leave it out, it is taken from there"
            )
    reach, learned = shape["context"], shape["positions"] == "learned"
    context = tokens.setdefault("context", reach if learned else min(CONTEXT, reach))
    if isinstance(context, int) and (context > reach or (learned and context != reach)):
        raise InputError(f"tokens.context: {context}; model.base reads {'' if learned else 'at most '}{reach} tokens")
    train.setdefault("peak_lr", PEAK_LR)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
