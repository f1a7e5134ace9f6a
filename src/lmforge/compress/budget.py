"""What a chain may cost: steps that give back what a loss budget does not allow, and the size to be reached."""

from __future__ import annotations

import dataclasses
from typing import Any

from lmforge.compress.importance import divergence
from lmforge.compress.measure import module_macs, resident_bytes
from lmforge.compress.method import METHODS, Compressed, Context, Method
from lmforge.errors import LmforgeError
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Budget, CompressStep


def check_size(model: GPT, file_bytes: int, budget: Budget) -> None:
    """Refuse what is larger than a budget of bytes (of the file's tensors) or of multiply-accumulates per token.

    Raises:
        LmforgeError: it is; names the layers that take most.
    """
    for key, reached, allowed, size in (
        ("bytes", file_bytes, budget.bytes, resident_bytes),
        ("macs", module_macs(model), budget.macs, module_macs),
    ):
        if allowed is None or reached <= allowed:
            continue
        parts = {name: size(module) for name, module in model.named_modules() if name and not any(module.children())}
        dearest = sorted(parts.items(), key=lambda item: -item[1])[:8]
        raise LmforgeError(
            f"compress.budget: {key}: {reached:,} where {allowed:,} are allowed; what takes most: "
            + ", ".join(f"{name} {taken:,}" for name, taken in dearest)
            + "; compress further or raise the budget"
        )


def within_budget(
    before: GPT, step: CompressStep, context: Context, original: float, budget: float | None
) -> tuple[Compressed, dict[str, float]]:
    """Apply a step; where bits per byte rise beyond `budget`, give the dearest of its units back, as few as will do.

    Raises:
        LmforgeError: even with all units but one given back the budget is not met.
    """
    method = METHODS[step.method]
    whole = method.apply(before, step, context)
    scores = context.evaluate(whole.model)
    rise = scores["bits_per_byte"] / original - 1
    if budget is None or rise <= budget:
        return whole, scores
    log(
        f"compress: bits per byte rose by {100 * rise:.2f}%, compress.budget allows {100 * budget:.2f}%; ranking the "
        "layers"
    )
    ranking = sensitivity(method, before, whole, step, context)
    worst = list(ranking)
    best: tuple[Compressed, dict[str, float], list[str]] | None = None
    low, high = 1, len(worst) - 1  # the fewest units to give back; more of them are taken to cost fewer bits
    while low <= high:
        middle = (low + high) // 2
        units = worst[:middle]
        result = method.give_back(before, whole, units, step, context)
        scores = context.evaluate(result.model)
        if scores["bits_per_byte"] / original - 1 <= budget:
            best, high = (result, scores, units), middle - 1
        else:
            low = middle + 1
    if best is None:
        listed = ", ".join(f"{name} {nats:.2g}" for name, nats in list(ranking.items())[:8])
        raise LmforgeError(
            f"compress.budget: {100 * budget:.3g}% is not met even with one layer left to {step.method} (all: "
            f"{100 * rise:.3g}%); layers by their cost alone, nats per token: {listed or 'none can be given back'}; "
            "raise the budget or leave out the step"
        )
    result, scores, units = best
    log(f"compress: {step.method}: given back: {', '.join(sorted(units))}")
    return dataclasses.replace(result, details={**result.details, "sensitivity": ranking}), scores


def sensitivity(
    method: Method[Any], before: GPT, whole: Compressed, step: CompressStep, context: Context
) -> dict[str, float]:
    """The cost of each unit of `whole`, which `method` made of `before`, when all others are given back, the dearest
    first: mean KL divergence from `before` over the predictions that count in one batch of calibration, nats per
    token."""
    batch = context.calibration[0]
    little = dataclasses.replace(context, calibration=context.calibration[:1])
    names = method.units(before, step)
    if len(names) < 2:  # with one unit, giving it back undoes the step
        return {}
    cost = {}
    for name in names:
        alone = method.give_back(before, whole, [other for other in names if other != name], step, little).model
        cost[name] = divergence(before, alone, [batch])
    return dict(sorted(cost.items(), key=lambda item: -item[1]))
