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
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmforge import machine
from lmforge.compress import quantize
from lmforge.compress.measure import decode_rate, measure
from lmforge.errors import InputError, LmforgeError
from lmforge.formats.native import CONFIG, TENSORS, TOKENIZER, load_model, model_tensors, read_config, write_model
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, write_atomic

REPORT = "report.json"
MEMORY_FROM_BYTES = 2_000_000  # a smaller model cannot be told from the interpreter around it
Evaluate = Callable[[GPT], dict[str, float]]
RESTORE = {quantize.METHOD: quantize.restore}


def load(directory: Path, verify: bool = True) -> GPT:
    """Any saved model, plain or compressed, ready to score and to decode.

    Raises:
        InputError: a file is missing, altered, or made by a method this version does not know.
    """

    def restore(model: GPT, entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> GPT:
        method = entry.get("method")
        if method not in RESTORE:
            raise InputError(
                f"{directory / CONFIG}: compression method {method!r} is not known; run the compress stage again"
            )
        return RESTORE[method](model, entry, tensors)

    return load_model(directory, restore, verify)


@dataclasses.dataclass
class Stage:
    """A model between two steps, with what `evaluate` said of it and the bytes its file takes."""

    name: str
    model: GPT
    scores: dict[str, float]
    file_bytes: int
    details: dict[str, Any]


def compress(recipe: Recipe, model_dir: Path, out: Path, calibration: Tensor, evaluate: Evaluate) -> dict[str, Any]:
    """Run `recipe.compress.steps` on the model in `model_dir`; leave the small model and `report.json` in `out`.

    `calibration`: tokens (rows, context) int64 from the training split. `evaluate(model)` gives at least
    `bits_per_byte`. The result (also in `report.json`) has `steps[]`, the first of them the uncompressed model,
    "original", and `verdicts` in words.

    Raises:
        InputError: `model_dir` holds no intact model.
        LmforgeError: `compress.budget` cannot be met (names the layers that cost most), or nothing can be written.
    """
    model = load(model_dir)
    previous = list(read_config(model_dir)["compression"])
    batches = torch.split(calibration, 4)
    stages = [Stage("original", model, evaluate(model), (model_dir / TENSORS).stat().st_size, {})]
    for step in recipe.compress.steps:
        log(f"compress: {step.method}")
        original = stages[0].scores["bits_per_byte"]
        model, details, scores = _quantize(stages[-1], batches, evaluate, original, recipe.compress.budget)
        stages.append(Stage(step.method, model, scores, 0, details))
    with atomic_directory(out) as directory:
        for stage in stages[1:]:
            save_file(model_tensors(stage.model), directory / TENSORS)
            stage.file_bytes = (directory / TENSORS).stat().st_size
        entries = previous + [stage.details["entry"] for stage in stages[1:]]
        write_model(directory, model.config, model_tensors(model), model_dir / TOKENIZER, compression=entries)
        report = _report(stages, model_dir, directory)
        write_atomic(directory / REPORT, json.dumps(report, indent=1) + "\n")
    for sentence in report["verdicts"]:
        log(f"compress: {sentence}")
    return report


def _quantize(
    before: Stage, batches: Sequence[Tensor], evaluate: Evaluate, original: float, budget: float | None
) -> tuple[GPT, dict[str, Any], dict[str, float]]:
    """Quantise; where bits per byte rise beyond `budget`, give the dearest layers back their fp32 weights, as few as
    will do.

    Raises:
        LmforgeError: even with all layers but one in fp32 the budget is not met.
    """

    def attempt(keep: Sequence[str]) -> tuple[GPT, dict[str, Any], dict[str, float], float]:
        model, details = quantize.quantize(before.model, batches, keep)
        scores = evaluate(model)
        return model, details, scores, scores["bits_per_byte"] / original - 1

    model, details, scores, rise = attempt(())
    if budget is None or rise <= budget:
        return model, details, scores
    log(
        f"compress: bits per byte rose by {100 * rise:.2f}%, compress.budget allows {100 * budget:.2f}%; ranking the "
        "layers"
    )
    ranking = sensitivity(before.model, batches)
    worst = list(ranking)
    found = None
    low, high = 1, len(worst) - 1  # the fewest layers to give back; more fp32 layers are taken to cost fewer bits
    while low <= high:
        middle = (low + high) // 2
        tried = attempt(worst[:middle])
        if tried[-1] <= budget:
            found, high = tried, middle - 1
        else:
            low = middle + 1
    if found is None:
        listed = ", ".join(f"{name} {nats:.2g}" for name, nats in list(ranking.items())[:8])
        raise LmforgeError(
            f"compress.budget: {100 * budget:.3g}% is not met even with one layer quantised (all: {100 * rise:.3g}%); "
            f"layers by their cost alone, nats per token: {listed}; raise the budget or leave out the step"
        )
    model, details, scores, _ = found
    log(f"compress: kept in fp32: {', '.join(details['entry']['kept'])}")
    return model, details | {"sensitivity": ranking}, scores


@torch.inference_mode()
def sensitivity(model: GPT, batches: Sequence[Tensor]) -> dict[str, float]:
    """Each layer's cost when it alone is quantised, the dearest first: mean KL divergence from the fp32 model, nats per
    token."""
    sample = batches[0]
    names = quantize.layer_names(model)
    reference = torch.log_softmax(model(sample), dim=-1)
    cost = {}
    for name in names:
        alone, _ = quantize.quantize(model, batches[:1], [other for other in names if other != name])
        difference = reference - torch.log_softmax(alone(sample), dim=-1)
        cost[name] = float((reference.exp() * difference).sum(-1).mean())
    return dict(sorted(cost.items(), key=lambda item: -item[1]))


def _report(stages: Sequence[Stage], model_dir: Path, directory: Path) -> dict[str, Any]:
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
        found: dict[str, int] = json.loads(done.stdout)
        return found
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
    decode_rate(load(Path(sys.argv[1]), verify=False), 1, 0.1)
    print(json.dumps({"peak_bytes": _high_water(), "before_bytes": before}))


if __name__ == "__main__":
    _main()
