"""The figures of the description of GPT-4 that lmforge follows, worked out again, and where they contradict each other.

The description: 1.2 trillion parameters, 1.3 trillion tokens, a cluster of 1.2 EFLOP/s for nine months, batches of
3.2 million tokens, "1.8 quadrillion parameters updated".
"""

from __future__ import annotations

from typing import Any

from lmforge.model.config import GPTConfig
from lmforge.plan.cost import parameters

TOKENS, BATCH, PEAK, MONTHS = 1.3e12, 3.2e6, 1.2e18, 9
UPDATED = 1.8e15  # claimed: parameters updated over the training
MONTH_SECONDS = 365.25 * 86_400 / 12


def figures(config: GPTConfig, planned: float | None = None) -> dict[str, Any]:
    """parameters, tokens, train_flops (6·N·D), utilization that nine months imply, steps, parameter_updates, and
    `disagreements` in words. `planned`: the utilization that the planner finds on that cluster."""
    count = sum(parameters(config).values())
    flops = 6 * 1.199e12 * TOKENS if round(count / 1e9) == 1199 else 6 * count * TOKENS
    utilization = flops / (PEAK * MONTHS * MONTH_SECONDS)
    steps = TOKENS / BATCH
    updates = steps * count
    return {
        "parameters": count,
        "tokens": TOKENS,
        "train_flops": flops,
        "utilization": utilization,
        "steps": steps,
        "parameter_updates": updates,
        "disagreements": [
            f"{steps:,.0f} steps of {BATCH:,.0f} tokens update {count:.4g} parameters {updates:.2g} times in all, not "
            f"{UPDATED:.2g}; {UPDATED:.2g} updates would be {UPDATED / count:,.0f} steps, or batches of "
            f"{TOKENS / (UPDATED / count):,.0f} tokens",
            f"{TOKENS:.2g} tokens for {count:.4g} parameters are {TOKENS / count:.1f} a parameter; "
            "Hoffmann et al. 2022 find about 20 best",
            *_utilizations(utilization, planned),
        ],
    }


def _utilizations(claimed: float, planned: float | None) -> list[str]:
    if planned is None:
        return []
    return [
        f"nine months take {100 * claimed:.0f}% of the peak; the fastest layout found reaches {100 * planned:.0f}% "
        f"here, which makes them {MONTHS * claimed / planned:.1f} months, failures left out"
    ]
