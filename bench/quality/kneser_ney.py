"""The n-gram baseline: bits per byte of a Kneser-Ney byte model on a run's test split, trained on its training split.

    python -m bench.quality.kneser_ney runs/laptop                 5-gram, one discount per order
    python -m bench.quality.kneser_ney runs/laptop --modified      three discounts per order
    python -m bench.quality.kneser_ney runs/laptop --all           beside it: orders 3 to 6, either way, and xz -9e file
    by file

Prints one JSON object, also written to bench/results/kneser_ney.json. Each model is trained and scored in a process of
its own, so `peak_memory_bytes` is that model's alone (with Python, its libraries and the documents, which are read one
at a time).
"""

from __future__ import annotations

import argparse
import lzma
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.harness import Results
from lmforge.corpus.build import read_documents
from lmforge.corpus.ngram import KneserNey
from lmforge.errors import LmforgeError
from lmforge.progress import log

RESULTS = Results("kneser_ney", packages=("numpy",))


def texts(run_dir: Path, split: str) -> Iterator[bytes]:
    """The documents of a split, as the bytes that are scored."""
    return (document["text"].encode() for document in read_documents(run_dir / "corpus", split))


def kneser_ney(run_dir: Path, order: int, modified: bool) -> dict[str, Any]:
    """Train on `train`, score `test`; seconds include reading the documents."""
    started = time.perf_counter()
    model = KneserNey.train(texts(run_dir, "train"), order, modified)
    trained = time.perf_counter()
    bits, scored = model.bits_per_byte(texts(run_dir, "test"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "order": order,
        "modified": modified,
        "bits_per_byte": bits,
        "bytes_scored": scored,
        "train_seconds": round(trained - started, 3),
        "score_seconds": round(time.perf_counter() - trained, 3),
        "peak_memory_bytes": peak,
    }


def xz(run_dir: Path) -> dict[str, Any]:
    """`xz -9e` of each test document by itself: it sees no training text, but all of the document's own past."""
    started = time.perf_counter()
    size = compressed = 0
    for text in texts(run_dir, "test"):
        # The preset's 64 MiB dictionary would reserve 674 MiB; one as long as the text finds the same matches.
        options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(4096, len(text))}
        compressed += len(lzma.compress(text, filters=[options]))
        size += len(text)
    return {"bits_per_byte": 8 * compressed / size, "bytes": size, "seconds": round(time.perf_counter() - started, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--modified", action="store_true")
    parser.add_argument("--all", action="store_true", help="also orders 3 to 6 with one and three discounts, and xz")
    arguments = parser.parse_args()
    chosen = (arguments.order, arguments.modified)
    others = [(order, modified) for order in range(3, 7) for modified in (False, True)] if arguments.all else []
    rows = {}
    # Fresh processes, and `machine()` (which loads torch) only after them: a process starts with its parent's peak
    # memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for which in dict.fromkeys([chosen, *others]):
            row = rows[which] = pool.submit(kneser_ney, arguments.run_dir, *which).result()
            log(f"order {which[0]}{' modified' if which[1] else ''}: {row['bits_per_byte']:.4f} bits per byte")
    result = dict(rows[chosen])
    if arguments.all:
        result |= {"models": [rows[which] for which in others], "xz_file_by_file": xz(arguments.run_dir)}
    RESULTS.publish({"run": result})


if __name__ == "__main__":
    try:
        main()
    except LmforgeError as error:
        log(f"error: {error}")
        sys.exit(error.exit_code)
