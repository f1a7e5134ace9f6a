"""Does the corpus stage's memory stay flat and its time linear? Corpora of 1, 2, 4, … times a size, each in a process
of its own.

    python -m bench.speed.corpus_scaling [--megabytes 4] [--doublings 4]

Documents are words of a Zipf distribution, a tenth of them near and a twentieth exact duplicates. Reports the exponent
of time over size (log-log least squares) and the slope of peak memory over size, in bytes a byte. Writes
bench/results/corpus_scaling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Results

RESULTS = Results("corpus_scaling")
FILE_BYTES = 1 << 20
VOCABULARY = 20_000


def write_texts(folder: Path, size: int) -> None:
    """JSONL files of `FILE_BYTES` each, `size` bytes together."""
    rng = random.Random(size)
    words = [
        "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=2 + int(rng.expovariate(0.25)))) for _ in range(VOCABULARY)
    ]
    weights = np.cumsum(1 / np.arange(1, VOCABULARY + 1)).tolist()
    held: list[str] = []
    written = 0
    for number in range(size // FILE_BYTES):
        with (folder / f"{number:06d}.jsonl").open("w") as file:
            while written < (number + 1) * FILE_BYTES:
                kind = rng.random()
                if held and kind < 0.15:
                    text = rng.choice(held)
                    if kind < 0.1:
                        text = " ".join(rng.choice(words) if rng.random() < 0.1 else word for word in text.split(" "))
                else:
                    text = " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(60, 900)))
                    held = [*held[-999:], text]
                written += file.write(json.dumps({"text": text}) + "\n")


def one(folder: Path, out: Path) -> None:
    """Build the corpus of a folder; prints seconds and peak memory."""
    from lmforge.corpus.build import build_corpus
    from lmforge.corpus.overlap import duplicates
    from lmforge.corpus.overlap.words import read_words
    from lmforge.recipe import parse_recipe

    duplicates.signature(read_words("compiled, or read from numba's cache, before the clock starts"))
    started = time.perf_counter()
    figures = build_corpus(
        parse_recipe({"corpus": {"sources": [{"kind": "jsonl", "path": folder}], "workers": 1, "analyse_bytes": 0}}),
        out,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(
        json.dumps(
            {
                "seconds": seconds,
                "peak_bytes": peak,
                "documents": figures["documents_in"],
                "dropped": figures["dropped"],
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=4)
    parser.add_argument("--doublings", type=int, default=4)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one[0]), Path(arguments.one[1]))
        return
    rows: list[dict[str, Any]] = []
    for doubling in range(arguments.doublings + 1):
        size = arguments.megabytes * FILE_BYTES << doubling
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "in").mkdir()
            write_texts(Path(folder, "in"), size)
            command = [
                sys.executable,
                "-m",
                "bench.speed.corpus_scaling",
                "--one",
                str(Path(folder, "in")),
                str(Path(folder, "corpus")),
            ]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            rows.append({"bytes": size, **json.loads(done.stdout)})
    sizes, seconds, peaks = (
        np.array([row[name] for row in rows], float) for name in ("bytes", "seconds", "peak_bytes")
    )
    largest = sizes >= sizes.max() / 10  # a tenfold range and more
    result = {
        "time_exponent": round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 4),
        "memory_slope_bytes_per_byte": round(float(np.polyfit(sizes[largest], peaks[largest], 1)[0]), 4),
        "memory_growth": round(float(peaks[-1] / peaks[largest][0]), 4),
        "range": round(2 ** math.log2(sizes[-1] / sizes[0])),
        "rows": rows,
    }
    RESULTS.publish({"run": result})


if __name__ == "__main__":
    main()
