"""One training of ours in a process of its own, as the benchmarks beside peers run it.

python -m bench.peers.ours RECIPE TOKENS OUT CHANGES...       (CHANGES: keys of the recipe as JSON, one run each)
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_ours(recipe: Path, tokens: Path, changes: dict[str, Any], threads: int, folder: Path) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.peers.ours",
        str(recipe),
        str(tokens),
        str(folder),
        json.dumps(changes),
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
    )
    whole = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"error: ours failed: {done.stderr[-800:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures | {"process_seconds": whole}


def worker(recipe: str, tokens: str, out: str, *variants: str) -> None:
    """Train each variant and print its figures; the processor time is that of the steps, with validation and saving at
    the end left out."""
    from lmforge.allocator import keep_freed_memory
    from lmforge.recipe import load_recipe
    from lmforge.train import loop

    keep_freed_memory()
    spent: list[float] = []

    class Timed(loop.Trainer):
        def train(self) -> None:
            spent.append(time.process_time())
            super().train()

        def validate(self, step: int, journal: Any) -> None:
            if step == self.schedule.steps:
                spent.append(time.process_time())
            super().validate(step, journal)

    loop.Trainer = Timed  # type: ignore[misc]
    for number, changes in enumerate(variants):
        spent.clear()
        settings = load_recipe(
            Path(recipe), [f"{key}={json.dumps(value)}" for key, value in json.loads(changes).items()]
        )
        place = Path(out) / str(number)
        figures = loop.train(settings, Path(tokens), place / "train", place / "model")
        loss = figures["valid_bits_per_byte"] * math.log(2)
        kept = {key: figures[key] for key in ("steps", "tokens", "seconds", "parameters", "chosen", "way")}
        print(json.dumps({"loss": loss, "cpu_seconds": spent[1] - spent[0], **kept}), flush=True)


if __name__ == "__main__":
    worker(*sys.argv[1:])
