"""Seconds of scoring beside lm-evaluation-harness's own `hf` backend: same model, same items, in turn, in one run.

    python -m bench.speed.evaluate MODEL [--limit 16] [--shots 0 5] [--batch 8] [--work DIR]

MODEL as for bench.quality.lm_eval_agreement. Both score the same documents of each task, ours and theirs one after the
other, task by task (A B, B A); the ratio is of the seconds of all tasks. The peer sorts the rows of its batches by
length; ours have no batch to choose.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from bench.quality.lm_eval_agreement import ours, peer
from lmforge.evaluate.definitions import DEFINITIONS
from lmforge.evaluate.engine import prepare, run
from lmforge.formats.load import load_any
from lmforge.generate.continuations import Continuations

RESULTS = Results("evaluate", packages=("lm_eval", "transformers"))
TASKS = ("arc_easy", "hellaswag", "openbookqa", "sciq", "social_iqa", "mmlu", "piqa", "winogrande")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--shots", type=int, nargs="*", default=[0, 5])
    parser.add_argument("--batch", type=int, default=8, help="of the peer")
    parser.add_argument("--tasks", nargs="*", choices=[*DEFINITIONS], default=list(TASKS))
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--work", type=Path, help="where the exported model is kept")
    given = parser.parse_args()
    loaded = load_any(given.model)
    loaded.model.eval()
    continuations = Continuations(loaded.model)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = peer(loaded, given.work or Path(scratch), given.batch)
        warm = prepare(DEFINITIONS[given.tasks[0]], Path(scratch) / "warm", 0, 1)  # imports and first passes of both
        for model in (ours(loaded, continuations), theirs):
            run(warm, model)
        for shots in given.shots:
            rows: dict[str, dict[str, float]] = {}
            for turn, name in enumerate(given.tasks):
                if shots and DEFINITIONS[name].learned is None:
                    continue
                try:
                    prepared = prepare(DEFINITIONS[name], Path(scratch) / f"{name}-{shots}", shots, given.limit)
                except Exception as error:
                    print(f"{name}: left out: {error}", flush=True)
                    continue
                ways: dict[str, Any] = {"ours": lambda: ours(loaded, continuations), "theirs": lambda: theirs}
                rows[name] = {}
                for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                    model, started = ways[way](), time.perf_counter()
                    run(prepared, model)
                    rows[name][way] = round(time.perf_counter() - started, 3)
                rows[name]["ratio"] = rows[name]["theirs"] / rows[name]["ours"]
                print(shots, name, rows[name], flush=True)
            total = {way: sum(row[way] for row in rows.values()) for way in ("ours", "theirs")}
            figures = {"ratio": total["theirs"] / total["ours"], "seconds": total, "tasks": rows, "items": given.limit}
            about = {"threads": torch.get_num_threads(), "peer_batch": given.batch}
            RESULTS.publish({f"{given.name}, {shots} shots": figures}, **about)


if __name__ == "__main__":
    main()
