"""What each step of a chain is worth: the chain again with one step left out, for each in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmforge.compress.chain import REPORT, compress
from lmforge.compress.method import Evaluate
from lmforge.errors import InputError
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.record import write_atomic
from lmforge.tokens.loader import Batch

TABLE = "ablation.json"
FIGURES = (
    "file_bytes",
    "resident_bytes",
    "macs_per_token",
    "bit_operations_per_token",
    "decode_tokens_per_second",
    "bits_per_byte",
)


def ablate(
    recipe: Recipe, model_dir: Path, whole: Path, out: Path, draw: Callable[[int], Batch], evaluate: Evaluate
) -> dict[str, Any]:
    """Run the recipe's chain with each of its steps left out; the models are left in folders of `out`, the table in
    `ablation.json` there: `rows[]`, the uncompressed model, the whole chain (of `whole`, where the compress stage left
    it), and each shorter one, with what it has at its end. A chain that is there already is not run again; one that was
    stopped goes on. Budgets hold for none: what is left out may be what meets them.

    Raises:
        InputError: the chain has fewer than two steps, or `whole` has no report.
    """
    steps = recipe.compress.steps
    if len(steps) < 2:
        raise InputError("compress --ablate: compress.steps has fewer than two steps; there is nothing to leave out")
    if not (whole / REPORT).is_file():
        raise InputError(f"{whole}: no compressed model here; run the compress stage first")
    report = json.loads((whole / REPORT).read_text())
    rows = [_row("original", report["steps"][0]), _row("whole chain", report["steps"][-1])]
    for number, step in enumerate(steps):
        name = f"without-{number + 1}-{step.method}"
        shorter = recipe.compress.model_copy(update={"steps": (*steps[:number], *steps[number + 1 :]), "budget": None})
        if not (out / name / REPORT).is_file():
            log(f"compress: without step {number + 1}, {step.method}")
            compress(recipe.model_copy(update={"compress": shorter}), model_dir, out / name, draw, evaluate)
        rows.append(_row(name, json.loads((out / name / REPORT).read_text())["steps"][-1]))
    for row in rows:
        log(f"compress: {row['name']}: {row['bits_per_byte']:.4f} bits per byte, {row['file_bytes']:,} bytes")
    table = {"rows": rows}
    write_atomic(out / TABLE, json.dumps(table, indent=1) + "\n")
    return table


def _row(name: str, step: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, **{figure: step.get(figure) for figure in FIGURES}}
