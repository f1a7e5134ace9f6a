"""Decoding at batch 1 and 8 where most inputs of the feed-forward matrices are zeros, beside the same matrices in full.

    python -m bench.speed.sparse_decode [--share 0.88] [--repetitions 5] [--seconds 0.4]

Random networks: what is skipped is set, not learned, so this is the kernels' part of the claim, not the loss. In turn,
in one run; fp32 and int8. Writes bench/results/sparse_decode.json.
"""

from __future__ import annotations

import argparse
import copy
import functools
from typing import Any

import torch

from bench.harness import Results
from bench.speed.int8 import random_model
from lmforge.compress.measure import decode_rate, in_turn
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.quantize import quantize
from lmforge.compress.sparse_input import SparseInput, skipped
from lmforge.kernels.build import path_taken
from lmforge.model.gpt import GPT

RESULTS = Results("sparse_decode")
SIZES = {256: 6, 512: 6, 768: 6}  # d_model: layers


@torch.no_grad()
def thinned(model: GPT, share: float) -> GPT:
    """The network with so large a share of the inputs of its feed-forward matrices at 0: those up to a threshold."""
    result = copy.deepcopy(model)
    batch = torch.randint(model.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    for block in result.blocks:  # one after the other: what thinned ones give is what the next ones see
        ff: Any = block.ff
        for name in ("up", "down"):
            inner, seen = getattr(ff, name), []
            handle = inner.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].abs()))
            result(batch)
            handle.remove()
            setattr(ff, name, SparseInput(inner, threshold=float(torch.cat(seen).flatten()[::7].quantile(share))))
    return result


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.88)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="length of each measurement")
    options = parser.parse_args()
    batch = CalibrationBatch.of_tokens(torch.randint(8192, (2, 64), generator=torch.Generator().manual_seed(0)))
    for width, layers in SIZES.items():
        model = random_model(width, layers)
        for form, dense in (("fp32", model), ("int8", quantize(model)[0])):
            pair = {"dense": dense, "sparse": thinned(dense, options.share)}
            row: dict[str, Any] = {"skipped": skipped(pair["sparse"], [batch])["of_matrices"], "path": path_taken()}
            for rows in (1, 8):
                rates = {
                    name: functools.partial(decode_rate, each, rows, options.seconds) for name, each in pair.items()
                }
                found = in_turn(rates, options.repetitions)
                row[f"decode_{rows}"] = found | {"ratio": found["sparse"] / found["dense"]}
            name = f"d_model {width}, {layers} layers, {form}"
            ratios = ", ".join(f"{row[f'decode_{rows}']['ratio']:.2f}×" for rows in (1, 8))
            print(f"{name}: {row['skipped']:.0%} skipped, {ratios}")
            RESULTS.add(name, row, threads=torch.get_num_threads(), repetitions=options.repetitions)


if __name__ == "__main__":
    main()
