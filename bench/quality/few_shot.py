"""Classes of images that a network trained here has never seen, told apart from a few images of each.

    python -m bench.quality.few_shot WORK [--set KEY=VALUE …]

Runs recipes/images.toml (episodes of six alphabets of Omniglot) on one thread, at most a quarter of an hour of one
free core, then asks the network what the recipe asks: characters of two other alphabets, twenty by ten images of each
and five by one, and scikit-learn's digits by ten images of each. Writes bench/results/few_shot.json: shares of images
told right, with 95% intervals over episodes, and the processor time of the training. What is done in WORK is not done
again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.harness import Results
from bench.quality.exercises import RECIPES, score, trained
from lmforge.recipe import load_recipe

RESULTS = Results("few_shot")


def main() -> None:
    """Train and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="keys of the recipe")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run, figures = trained("images", given.work.resolve(), given.overrides)
    RESULTS.publish({"training": figures}, threads=1)
    for settings in load_recipe(RECIPES / "images.toml", given.overrides).evaluate.tasks:
        assert not isinstance(settings, str)
        result = score(run, settings.name, settings.model_dump(exclude={"name"}, exclude_none=True))
        shown = {"accuracy": result.value, "low": result.low, "high": result.high, "episodes": result.items}
        asked = settings.model_dump(include={"ways", "shots", "asked", "views", "how"})
        RESULTS.publish({f"scores/{settings.title}": shown | asked}, threads=1)


if __name__ == "__main__":
    main()
