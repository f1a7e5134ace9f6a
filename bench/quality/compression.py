"""Each way of compressing alone, and what it loses: bits per byte on held-out text of a model that lmforge trained.

    lmforge run recipes/english-95.toml                                         the teacher, once
    python -m bench.quality.compression runs/english-95 [--only w8a8 linear …] [--steps 400]

For each row the model of the run goes through one method (with its healing of --steps updates of 8,192 tokens of the
training split, where it has one) and is scored on the test split, whole, as is the model itself; nothing is chosen by
that split. Bytes are those of the file, beside what the model would take in bf16. What is done in RUN/alone is not done
again. Rows go to bench/results/compression.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from bench.harness import Results
from lmforge.compress.chain import REPORT, compress
from lmforge.evaluate.windows import quick_bits_per_byte
from lmforge.formats.native import load_network
from lmforge.pipeline.stages import rows_and_scores
from lmforge.progress import log
from lmforge.recipe import Recipe, load_recipe

RESULTS = Results("compression")
SCORED = 1_000_000  # tokens of the test split, evenly over its documents; it has fewer
Steps = list[dict[str, Any]]


def methods(steps: int) -> dict[str, Steps]:
    """The steps of each row's chain."""
    heal = {"steps": steps, "rows": 32, "optimizer": "muon", "matrix_lr": 0.004, "peak_lr": 1e-3, "final_lr": 0.0}
    part = heal | {"steps": max(1, steps // 4)}
    student = {"layers": 3, "d_ff": 256} | heal
    return {
        "w8a8": [{"method": "quantize"}],
        "weights, 4 bits": [{"method": "quantize", "kind": "weights", "bits": 4}],
        "weights, 3 bits": [{"method": "quantize", "kind": "weights", "bits": 3}],
        "weights, 3 bits, nearest": [{"method": "quantize", "kind": "weights", "bits": 3, "rounding": "nearest"}],
        "weights, 3 bits, trained": [
            {"method": "qat", "kind": "weights", "bits": 3, **heal},
            {"method": "quantize", "kind": "weights", "bits": 3, "rounding": "nearest"},
        ],
        "80% of weights zero": [
            {"method": "prune", "kind": "unstructured", "share": 0.8, "scope": "global", "rounds": 4, "heal": part}
        ],
        "half of the feed-forward units": [
            {"method": "prune", "kind": "structured", "units": 0.5, "rounds": 2, "heal": heal | {"steps": steps // 2}}
        ],
        "low rank, a fifth": [{"method": "factorize", "ratio": 5.0, "heal": heal}],
        "sparse activations": [{"method": "sparsify", "matrices": ["ff.down"], "share": 0.9, "heal": heal}],
        "linear attention": [{"method": "linearize", "transfer": {"steps": steps // 2, "rows": 32}, "heal": heal}],
        "window of 64": [{"method": "linearize", "kind": "window", "window": 64, "transfer": None, "heal": heal}],
        "student, taught": [{"method": "distil", **student}],
        "student, from the text alone": [{"method": "distil", **student, "labels": 1.0}],
    }


def row(recipe: Recipe, run: Path, name: str, steps: Steps, scored: int = SCORED) -> dict[str, Any]:
    """Compress the run's model with these steps, and score what comes of it on so many tokens of the test split."""
    folder = run / "alone" / name.replace(" ", "-").replace(",", "").replace("%", "")
    chain = Recipe.model_validate(recipe.model_dump() | {"compress": {"steps": steps}})
    known = folder / "steps.json"
    if not (folder / REPORT).is_file() or not known.is_file() or json.loads(known.read_text()) != steps:
        shutil.rmtree(folder, ignore_errors=True)
        compress(chain, run / "model", folder, *rows_and_scores(chain, run))
        known.write_text(json.dumps(steps))
    report = json.loads((folder / REPORT).read_text())
    first, last = report["steps"][0], report["steps"][-1]

    def bits(model: Path) -> float:
        return quick_bits_per_byte(load_network(model), run / "tokens", "test", recipe.tokens.context, scored)

    before, after = bits(run / "model"), bits(folder)
    figures = {
        "bits_per_byte": {"before": before, "after": after, "tokens": scored},
        "rise_percent": 100 * (after / before - 1),
        "bytes_of_bf16": report["file_ratio_to_bf16"],
        "macs": last["macs_per_token"] / first["macs_per_token"],
        "bit_operations": last["bit_operations_per_token"] / first["bit_operations_per_token"],
        "decode": {
            batch: last["decode_tokens_per_second"][batch] / rate
            for batch, rate in first["decode_tokens_per_second"].items()
        },
        "healing_steps": sum(step.get("steps", 0) for step in steps),
    }
    if "skipped" in last:
        figures["skipped"] = last["skipped"]
    log(f"{name}: {figures['rise_percent']:+.2f}% bits per byte, {figures['bytes_of_bf16']:.3f} of the bf16 bytes")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run whose model is trained")
    parser.add_argument("--steps", type=int, default=400, help="updates of a healing")
    parser.add_argument("--only", nargs="*", help="names of rows")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.run / "recipe.toml")
    every = methods(arguments.steps)
    for name in arguments.only or every:
        RESULTS.add(name, row(recipe, arguments.run, name, every[name]))


if __name__ == "__main__":
    main()
