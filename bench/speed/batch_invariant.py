"""What answers that do not depend on their company cost: decoding with and without, in turn, in one run.

    OMP_NUM_THREADS=1 python -m bench.speed.batch_invariant [--repetitions 5] [--seconds 0.3]

Random networks, fp32 and int8, greedy, prompts of 64 tokens, at batch 1, 8 and 16. Writes
bench/results/batch_invariant.json.
"""

from __future__ import annotations

import argparse
import functools
import time

import torch

from bench.harness import Results
from bench.speed.int8 import SIZES, random_model
from lmforge.compress.measure import in_turn
from lmforge.compress.quantize import quantize
from lmforge.generate.continuation import rows_multiple
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT

BATCHES = (1, 8, 16)
RESULTS = Results("batch_invariant")


def rate(model: GPT, batch: int, seconds: float, batch_invariant: bool) -> float:
    """Tokens per second through `decode`, after the prompts were read."""
    prompts = [[(row + position) % model.config.vocab_size for position in range(64)] for row in range(batch)]
    samplings = [Sampling(max_tokens=10_000, temperature=0, stop_ids=())] * batch
    steps = decode(model, prompts, samplings, batch_invariant=batch_invariant)
    next(steps)
    started, made = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        made += len(next(steps))
    return made / (time.perf_counter() - started)


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of each measurement")
    options = parser.parse_args()
    about = {"threads": torch.get_num_threads(), "repetitions": options.repetitions, "seconds_each": options.seconds}
    for width in (256, 384):
        plain = random_model(width, SIZES[width])
        for kind, model in {"fp32": plain, "int8": quantize(plain)[0]}.items():
            row: dict[str, object] = {"rows_multiple": rows_multiple(model)}
            for batch in BATCHES:
                measured = functools.partial(rate, model, batch, options.seconds)
                both = {name: functools.partial(measured, name == "invariant") for name in ("plain", "invariant")}
                rates = in_turn(both, options.repetitions)
                row[f"batch_{batch}"] = rates | {"ratio": rates["invariant"] / rates["plain"]}
            name = f"{kind}, d_model {width}, {SIZES[width]} layers"
            print(name, row, flush=True)
            RESULTS.add(name, row, **about)


if __name__ == "__main__":
    main()
