"""One tuning for all widths: the best AdamW rate at widths 64, 128 and 256, with `train.base_width` and without; on one
thread, ten minutes.

    python -m bench.quality.transfer [--steps 80]

tinyshakespeare by characters, two layers, heads of 32, 1,024 tokens a step; the loss is the mean over the last eighth
of the steps. With µP (Yang et al. 2022) the best rate should stay where it is; without, it should fall as the width
grows. `train.output_multiplier` is tuned at width 64 too, so what is tuned there is a pair; the result says what the
pair of width 64 gives at the others. Writes bench/results/transfer.json.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch

from bench.harness import Results
from bench.peers.speedrun_cpu import parts
from lmforge.allocator import keep_freed_memory
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Train
from lmforge.train.optim import build_optimizers, rate, set_rate

RESULTS = Results("transfer")

WIDTHS, RATES, MULTIPLIERS, CONTEXT, ROWS, BASE = (
    (64, 128, 256),
    tuple(2.0**-power for power in range(11, 4, -1)),
    (1.0, 2.0, 4.0, 8.0),
    64,
    16,
    64,
)


def loss_after(text: torch.Tensor, width: int, peak: float, base: int | None, multiplier: float, steps: int) -> float:
    """Mean training loss of the last eighth; the same batches for all."""
    heads = width // 32
    model = GPT(
        GPTConfig(
            vocab_size=256,
            context=CONTEXT,
            layers=2,
            d_model=width,
            heads=heads,
            kv_heads=heads,
            d_ff=4 * width,
            norm="layernorm",
            activation="relu2",
            qk_norm=True,
        )
    )
    model.initialise(1, base, multiplier)
    optimizers = build_optimizers(
        model, Train(peak_lr=peak, base_width=base, output_multiplier=multiplier, weight_decay=0.0)
    )
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (ROWS,), generator=generator)
        rows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        loss = model.loss(rows[:, :-1], rows[:, 1:].contiguous()) / (ROWS * CONTEXT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_rate(optimizers, rate(step, steps, steps // 10, 0.1))
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    last = sum(losses[-(steps // 8) :]) / (steps // 8)
    return last if math.isfinite(last) else math.inf


def main() -> None:
    """All widths, rates and both parametrisations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    text = torch.from_numpy(np.frombuffer(parts()["train"].encode(), dtype=np.uint8).astype(np.int64))

    def row(what: str, width: int, base: int | None, multiplier: float) -> dict[str, Any]:
        losses = {
            f"2^{math.log2(peak):.0f}": loss_after(text, width, peak, base, multiplier, arguments.steps)
            for peak in RATES
        }
        best = min(losses, key=losses.__getitem__)
        print(
            f"{what}, output x {multiplier:g}, width {width}: best {best}; "
            + ", ".join(f"{peak} {loss:.3f}" for peak, loss in losses.items()),
            flush=True,
        )
        return {"what": what, "width": width, "output_multiplier": multiplier, "best_rate": best, "losses": losses}

    tuning = [row("tuned", BASE, None, multiplier) for multiplier in MULTIPLIERS]
    tuned = min(tuning, key=lambda one: one["losses"][one["best_rate"]])
    rows = [
        row(name, width, base, tuned["output_multiplier"])
        for name, base in (("µP", BASE), ("not scaled", None))
        for width in WIDTHS[1:]
    ]
    taken_over = [
        {
            "what": each["what"],
            "width": each["width"],
            "at_the_tuned_rate": each["losses"][tuned["best_rate"]],
            "at_its_best": each["losses"][each["best_rate"]],
        }
        for each in rows
    ]
    RESULTS.publish({"run": {"tuning": tuning, "rows": rows, "with_the_rate_of_width_64": taken_over}})


if __name__ == "__main__":
    main()
