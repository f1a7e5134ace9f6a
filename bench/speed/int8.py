"""fp32 against int8: decoding at batch 1, 8, 16 and 64 and reading a prompt, in turn, in one run; trains nothing.

    OMP_NUM_THREADS=1 python -m bench.speed.int8 [--model DIR] [--repetitions 5] [--seconds 0.4]

Writes bench/results/int8.json: figures with machine, versions and command. The floor of decoding is the bytes of
weights that a step must read, divided by the bandwidth with which this machine reads a large array; a model that fits
in the caches can beat it.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from bench.speed.decode_cpu import bandwidth
from lmforge.compress.int8 import engine_here
from lmforge.compress.measure import decode_rate, in_turn, prefill_rate, resident_bytes
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.quantize import quantize
from lmforge.formats.native import load_network, model_tensors
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT, GPTConfig

SIZES = {128: 6, 256: 6, 384: 6, 768: 12}  # d_model: layers
VOCABULARY, CONTEXT, HEAD_WIDTH = 8192, 512, 64
WIDTHS = (6, 22, 22, 8, 8, 8, 19)
RESULTS = Results("int8", packages=("safetensors",))


def random_model(width: int, layers: int) -> GPT:
    """A model of the wanted size with random weights: speed does not depend on what they are."""
    heads = width // HEAD_WIDTH
    shape = {"layers": layers, "d_model": width, "heads": heads, "kv_heads": heads, "d_ff": 4 * width}
    model = GPT(GPTConfig(vocab_size=VOCABULARY, context=CONTEXT, **shape))
    model.initialise(0)
    return model.eval()


def loop_rate(model: GPT, batch: int, seconds: float) -> float:
    """Tokens per second through `generate.decode`, sampling included, as chat and server run it."""
    prompts = [[(row + position) % model.config.vocab_size for position in range(64)] for row in range(batch)]
    samplings = [Sampling(max_tokens=10_000, temperature=0, stop_ids=())] * batch
    steps = 0
    started = time.perf_counter()
    for _ in decode(model, prompts, samplings):
        steps += 1
        if steps > 2 and time.perf_counter() - started > seconds:
            break
    return batch * steps / (time.perf_counter() - started)


def weights_read(model: GPT) -> int:
    """Bytes of the matrices that one decoding step multiplies by (the head is one, embeddings are looked up)."""
    linear = [(m.in_features, m.out_features) for m in model.modules() if hasattr(m, "in_features")]
    each = 4 if any(isinstance(m, torch.nn.Linear) for m in model.modules()) else 1
    return sum(i * o * each + (4 * o if each == 1 else 0) for i, o in linear)


def compare(name: str, model: GPT, repetitions: int, seconds: float, bytes_per_second: float) -> dict[str, Any]:
    """One row of the table: both models, each figure the median of `repetitions` taken in turn."""
    calibration = torch.randint(model.config.vocab_size, (4, 256), generator=torch.Generator().manual_seed(0))
    small, details = quantize(model, [CalibrationBatch.of_tokens(calibration)])
    pair = {"fp32": model, "int8": small}
    row: dict[str, Any] = {"model": name, "engine": details["engine"], "config": model.config.to_json()}
    tensor_bytes = {key: sum(t.nbytes for t in model_tensors(each).values()) for key, each in pair.items()}
    row |= {"tensor_bytes": tensor_bytes, "file_ratio": tensor_bytes["int8"] / tensor_bytes["fp32"]}
    row["resident_bytes"] = {key: resident_bytes(each) for key, each in pair.items()}
    tasks: dict[str, functools.partial[float]] = {
        f"{word}_{batch}": functools.partial(rate, batch=batch, seconds=seconds)
        for word, rate in (("decode", decode_rate), ("loop", loop_rate))
        for batch in (1, 8, 16, 64)
    } | {"prefill": functools.partial(prefill_rate, seconds=seconds)}
    for task, rate in tasks.items():
        rates = in_turn({key: functools.partial(rate, each) for key, each in pair.items()}, repetitions)
        row[task] = rates | {"ratio": rates["int8"] / rates["fp32"]}
    floors = {key: weights_read(each) / bytes_per_second for key, each in pair.items()}
    row["floor_seconds_per_step"] = floors
    row["times_the_floor"] = {key: 1 / row["decode_1"][key] / floors[key] for key in pair}
    return row


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="measure this saved fp32 model instead of random ones")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="length of each measurement")
    options = parser.parse_args()
    speed = bandwidth(torch.get_num_threads())
    todo = (
        [str(options.model)]
        if options.model
        else [f"d_model {width}, {layers} layers" for width, layers in SIZES.items()]
    )
    print(f"int8 engine {engine_here()}, {torch.get_num_threads()} thread(s), {speed / 1e9:.1f} GB/s read")
    heads = ("file", "decode 1", "decode 16", "loop 1", "loop 16", "prefill", "× floor fp32, int8")
    print(f"{'model':24} " + " ".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)))
    rows = []
    for name, width in zip(todo, SIZES, strict=False):
        model = load_network(options.model) if options.model else random_model(width, SIZES[width])
        row = compare(name, model, options.repetitions, options.seconds, speed)
        rows.append(row)
        decoding = [
            f"{row[t]['fp32']:,.0f} → {row[t]['int8']:,.0f} {row[t]['ratio']:.2f}×" for t in ("decode_1", "decode_16")
        ]
        others = [f"{row[t]['ratio']:.2f}×" for t in ("loop_1", "loop_16", "prefill")]
        cells = [
            f"{row['file_ratio']:.3f}",
            *decoding,
            *others,
            ", ".join(f"{times:.1f}" for times in row["times_the_floor"].values()),
        ]
        print(
            f"{name:24} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True
        )
    about = {"threads": torch.get_num_threads(), "repetitions": options.repetitions, "seconds_each": options.seconds}
    RESULTS.add("read_bytes_per_second", speed, **about)
    for row in rows:
        RESULTS.add(row["name"], row, **about)


if __name__ == "__main__":
    main()
