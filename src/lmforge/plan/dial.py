"""`lmforge run RECIPE --dial small`: one number sizes network, length of training, batch and rates; a family of
compute-optimal models.

    depth ─▶ width = 64 · depth, heads of 64 ─▶ parameters of the blocks' matrices ─▶ tokens = 20 for each ─▶ batch,
    steps, rates

Twenty tokens a parameter: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", table 3. A depth from
which all else
follows: nanochat. What the recipe says of texts, vocabulary, context and kinds of layers stays.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence

from lmforge.errors import InputError
from lmforge.recipe import Recipe, parse_recipe

NAMED = {"tiny": 2, "small": 4, "medium": 8, "large": 12, "huge": 24}
WIDTH, HEAD = 64, 64  # width a layer; width of a head
TOKENS_PER_PARAMETER = 20
TUNED_WIDTH = 256  # up to which peak_lr needs no scaling


def depth_of(dial: str) -> int:
    """A name, or a number of layers.

    Raises:
        InputError: it is neither.
    """
    if dial in NAMED:
        return NAMED[dial]
    if not dial.isascii() or not dial.isdigit() or not 1 <= int(dial) <= 200:
        raise InputError(f"--dial {dial}: give {', '.join(NAMED)}, or a number of layers from 1 to 200")
    return int(dial)


def dialled(recipe: Recipe, dial: str) -> Sequence[str]:
    """The keys that a dial sets, as overrides (`section.key=value`); the name gains the dial, so that a family's runs
    lie side by side."""
    depth = depth_of(dial)
    width = WIDTH * depth
    matrices = 12 * depth * width**2  # 4 D² of attention and 8 D² of the feed-forward part
    tokens = TOKENS_PER_PARAMETER * matrices
    context = recipe.tokens.context
    batch = max(context, 1 << round(math.log2(min(max(tokens / 1000, 2048), 524_288))))
    length = f"train.tokens={tokens}" if recipe.train.tokens is not None else f"train.steps={math.ceil(tokens / batch)}"
    return (
        f"name={recipe.name}-{dial}",
        f"model.layers={depth}",
        f"model.d_model={width}",
        f"model.heads={width // HEAD}",
        f"train.batch_tokens={batch}",
        length,
        f"train.peak_lr={3e-3 * min(1.0, TUNED_WIDTH / width):.3g}",
        "train.matrix_lr=0.02",
    )


def dialled_text(text: str, dial: str) -> str:
    """A recipe's TOML with the keys of a dial in place of its own; comments that told of those go.

    Raises:
        InputError: no such dial.
    """
    keys = dialled(parse_recipe(tomllib.loads(text)), dial)
    changes = {name: value for name, _, value in (key.partition("=") for key in keys)}
    sections = {name.rpartition(".")[0] for name in changes}
    lines: list[str] = [
        f"# Sized by --dial {dial}: {TOKENS_PER_PARAMETER} tokens for each parameter of the blocks' matrices."
    ]
    section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            lines += [_stated(name, changes.pop(name)) for name in [*changes] if name.rpartition(".")[0] == section]
            section = stripped.strip("[]")
            while section in sections and lines[-1].startswith("#"):
                lines.pop()
        name = f"{section}.{stripped.partition('=')[0].strip()}".lstrip(".")
        lines.append(_stated(name, changes.pop(name)) if name in changes and not stripped.startswith("#") else line)
    return (
        "\n".join(
            [*lines, *(_stated(name, value) for name, value in changes.items() if name.rpartition(".")[0] == section)]
        )
        + "\n"
    )


def _stated(name: str, value: str) -> str:
    key = name.rpartition(".")[2]
    return f"{key} = {json.dumps(value)}" if key == "name" else f"{key} = {value}"
