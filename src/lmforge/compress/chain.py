"""Model → smaller model: the recipe's steps in order, each measured, nothing claimed that was not.

model/ ─load─▶ original ─step─▶ smaller ─step─▶ … ─▶ compressed/ {model.safetensors, config.json, tokenizer.json,
report.json}
                  └──────── bytes, memory, MACs, tokens/s, bits per byte of each, side by side ────────┘

python -m lmforge.compress.chain MODEL      loads MODEL, decodes a little and prints its memory in bytes, as JSON
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lmforge import machine
from lmforge.compress.measure import decode_rate, measure
from lmforge.compress.method import METHODS, CalibrationBatch, Compressed, Context, Evaluate, Method
from lmforge.errors import LmforgeError
from lmforge.formats.native import TENSORS, TOKENIZER, load_network, model_tensors, read_config, write_model
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import CompressStep, Recipe
from lmforge.record import atomic_directory, content_hash, hash_json, write_atomic
from lmforge.tokens.loader import Batch

REPORT = "report.json"
MEMORY_FROM_BYTES = 2_000_000  # a smaller model cannot be told from the interpreter around it


@dataclasses.dataclass
class ChainStage:
    """A model between two steps, with what `evaluate` said of it and the bytes its file takes."""

    name: str
    model: GPT
    scores: dict[str, float]
    file_bytes: int
    entry: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def compress(
    recipe: Recipe, model_dir: Path, out: Path, draw: Callable[[int], Batch], evaluate: Evaluate
) -> dict[str, Any]:
    """Run `recipe.compress.steps` on the model in `model_dir`; leave the small model and `report.json` in `out`.

    `draw(n)`: batch n of the training split, with the targets that the loss counts; batch 0 is for calibration.
    `evaluate(model)` gives at least `bits_per_byte`. What a method keeps while it works is in `.OUT.work` beside `out`,
    until all is done. The result (also in `report.json`) has `steps[]`, the first of them the uncompressed model,
    "original", and `verdicts` in words.

    Raises:
        InputError: `model_dir` holds no intact model.
        LmforgeError: `compress.budget` cannot be met (names the layers that cost most), or nothing can be written.
    """
    model = load_network(model_dir)
    previous = list(read_config(model_dir)["compression"])
    work = out.with_name(f".{out.name}.work")
    stages = [ChainStage("original", model, evaluate(model), (model_dir / TENSORS).stat().st_size)]
    rows = CalibrationBatch.of_rows(draw(0))
    batches = rows.of_which_some_count().split(4)
    done: list[Any] = [content_hash(model_dir), recipe.seed, rows.inputs.tolist(), rows.targets.tolist()]
    for step in recipe.compress.steps:
        log(f"compress: {step.method}")
        done.append(step.model_dump(mode="json"))
        context = Context(
            calibration=batches,
            draw=lambda number: CalibrationBatch.of_rows(draw(number)),
            evaluate=evaluate,
            seed=recipe.seed,
            folder=work / hash_json(done)[:16],
            teacher=stages[0].model,
        )
        original = stages[0].scores["bits_per_byte"]
        result, scores = _within_budget(stages[-1].model, step, context, original, recipe.compress.budget)
        stages.append(ChainStage(step.method, result.model, scores, 0, result.entry, result.details))
    with atomic_directory(out) as directory:
        for stage in stages[1:]:
            save_file(model_tensors(stage.model), directory / TENSORS)
            stage.file_bytes = (directory / TENSORS).stat().st_size
        entries = previous + [stage.entry for stage in stages[1:]]
        last = stages[-1].model
        write_model(directory, last.config, model_tensors(last), model_dir / TOKENIZER, compression=entries)
        report = _report(stages, model_dir, directory)
        write_atomic(directory / REPORT, json.dumps(report, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    for sentence in report["verdicts"]:
        log(f"compress: {sentence}")
    return report


def _within_budget(
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


@torch.inference_mode()
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
    counts = batch.counts if bool(batch.counts.any()) else torch.ones_like(batch.counts)
    reference = torch.log_softmax(before(batch.inputs, documents=batch.documents), dim=-1)[counts]
    cost = {}
    for name in names:
        alone = method.give_back(before, whole, [other for other in names if other != name], step, little).model
        smaller = torch.log_softmax(alone(batch.inputs, documents=batch.documents), dim=-1)[counts]
        cost[name] = float((reference.exp() * (reference - smaller)).sum(-1).mean())
    return dict(sorted(cost.items(), key=lambda item: -item[1]))


def _report(stages: Sequence[ChainStage], model_dir: Path, directory: Path) -> dict[str, Any]:
    """The figures of all stages, measured in turn, and what they say in words."""
    figures = measure({stage.name: stage.model for stage in stages})
    memory = {}
    if stages[0].file_bytes >= MEMORY_FROM_BYTES:
        memory = {stages[0].name: peak_memory(model_dir), stages[-1].name: peak_memory(directory)}
    steps = [
        {
            "name": stage.name,
            "file_bytes": stage.file_bytes,
            **figures[stage.name],
            "peak_memory": memory.get(stage.name),
            "bits_per_byte": stage.scores["bits_per_byte"],
            "scores": stage.scores,
            **({"entry": stage.entry} if stage.entry else {}),
            **stage.details,
        }
        for stage in stages
    ]
    first, last = steps[0], steps[-1]
    return {
        "steps": steps,
        "verdicts": verdicts(first, last),
        "file_ratio": last["file_bytes"] / first["file_bytes"],
        "file_ratio_to_bf16": 2 * last["file_bytes"] / first["file_bytes"],
        "bits_per_byte_rise": last["bits_per_byte"] / first["bits_per_byte"] - 1,
        "machine": machine.describe(),
    }


def verdicts(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Plain sentences on what compression changed, and where it brought nothing."""
    file = last["file_bytes"] / first["file_bytes"]
    rise = last["bits_per_byte"] / first["bits_per_byte"] - 1
    told = [
        f"file: {file:.3f}× the fp32 bytes, {2 * file:.3f}× what bf16 would take"
        + ("" if file < 1 else " — no smaller")
    ]
    compared = [("memory held by the model", last["resident_bytes"] / first["resident_bytes"], False)]
    if first["peak_memory"] and last["peak_memory"]:
        peaks = [step["peak_memory"]["peak_bytes"] for step in (first, last)]
        compared.append(("peak memory of a process with it", peaks[1] / peaks[0], False))
    compared.append(("multiply-accumulates per token", last["macs_per_token"] / first["macs_per_token"], False))
    for batch in first["decode_tokens_per_second"]:
        rate = last["decode_tokens_per_second"][batch] / first["decode_tokens_per_second"][batch]
        compared.append((f"decode at batch {batch}", rate, True))
    compared.append(("prefill", last["prefill_tokens_per_second"] / first["prefill_tokens_per_second"], True))
    for name, ratio, speed in compared:
        better = ratio > 1.02 if speed else ratio < 0.98  # within 2% is no change
        nothing = "" if better else " — no speed-up here" if speed else " — not reduced here"
        told.append(f"{name}: {ratio:.2f}×{nothing}")
    told.append(
        f"bits per byte: {first['bits_per_byte']:.4f} → {last['bits_per_byte']:.4f} ({100 * rise:+.2f}%)"
        + (" — worse" if rise > 5e-5 else "")
    )
    if "none" in str(last.get("engine", "")):
        told.append("no working int8 kernel on this machine: the products are taken in fp32, so nothing gets faster")
    return told


def peak_memory(directory: Path) -> dict[str, int] | None:
    """Memory of a fresh process that loads the model and decodes: `peak_bytes`, and `before_bytes` with the libraries
    alone.

    None where such a process cannot be started or does not end within a minute.
    """
    command = [sys.executable, "-m", "lmforge.compress.chain", str(directory)]
    with contextlib.suppress(OSError, subprocess.SubprocessError, json.JSONDecodeError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        figures: dict[str, int] = json.loads(done.stdout)
        return figures
    return None


def _high_water() -> int:
    """The most memory this process has held, in bytes."""
    with contextlib.suppress(OSError):  # on Linux getrusage would count the parent's memory too (it survives exec)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main() -> None:
    torch.set_num_threads(1)
    before = _high_water()
    decode_rate(load_network(Path(sys.argv[1]), verify=False), 1, 0.1)
    print(json.dumps({"peak_bytes": _high_water(), "before_bytes": before}))


if __name__ == "__main__":
    _main()
