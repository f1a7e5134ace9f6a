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

from lmforge import machine
from lmforge.compress.budget import check_size, within_budget
from lmforge.compress.measure import decode_rate, measure, step_seconds
from lmforge.compress.method import CalibrationBatch, Context, Evaluate, inputs_of
from lmforge.formats.native import (
    TENSORS,
    TOKENIZER,
    load_network,
    model_tensors,
    origin_of,
    read_config,
    write_model,
)
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Budget, CompressStep, Recipe
from lmforge.record import atomic_directory, content_hash, hash_json, write_atomic
from lmforge.tokens.loader import Batch

REPORT, STEP = "report.json", "step.json"
FINISHED = "finished"  # in a step's folder: the model that it made
SAME = 0.98  # a ratio of speeds or sizes from which on nothing has changed
NARROW = 128  # narrower networks take so little time that nothing is chosen by it
SLOWER = "decode at batch 1: integers are slower than floating point on this machine; the model is served in that"
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
    `evaluate(model)` gives at least `bits_per_byte`. Each finished step, and what a method keeps while it works, is in
    `.OUT.work` beside `out` until all is done: a chain that was stopped goes on behind its last finished step. The
    result (also in `report.json`) has `steps[]`, the first of them the uncompressed model, "original", and `verdicts`
    in words.

    Raises:
        InputError: `model_dir` holds no intact model.
        LmforgeError: `compress.budget` cannot be met (names the layers that cost most), or nothing can be written.
    """
    model = load_network(model_dir)
    config = read_config(model_dir)
    entries, notes = list(config["compression"]), origin_of(config.get("notes", {}))
    work = out.with_name(f".{out.name}.work")
    stages = [ChainStage("original", model, evaluate(model), (model_dir / TENSORS).stat().st_size)]
    rows = CalibrationBatch.of_rows(draw(0))
    budget = recipe.compress.budget or Budget()
    done: list[Any] = [content_hash(model_dir), recipe.seed, rows.inputs.tolist(), rows.targets.tolist(), budget.loss]
    for step in recipe.compress.steps:
        done.append([step.model_dump(mode="json"), inputs_of([step])])
        context = Context(
            calibration=rows.of_which_some_count().split(4),
            draw=lambda number: CalibrationBatch.of_rows(draw(number)),
            evaluate=evaluate,
            seed=recipe.seed,
            folder=work / hash_json(done)[:16],
            teacher=stages[0].model,
            tokenizer=model_dir / TOKENIZER,
        )
        stage = _finished(step, context.folder / FINISHED)
        if stage is None:
            log(f"compress: {step.method}")
            before, original = stages[-1].model, stages[0].scores["bits_per_byte"]
            stage = _run(before, step, context, original, budget.loss, entries)
        entries = list(read_config(context.folder / FINISHED)["compression"])
        stages.append(stage)
    check_size(stages[-1].model, stages[-1].file_bytes, budget)
    with atomic_directory(out) as directory:
        last = stages[-1].model
        write_model(
            directory, last.config, model_tensors(last), model_dir / TOKENIZER, compression=entries, notes=notes
        )
        report = _report(stages, model_dir, directory)
        faster = served_in_floats(entries, stages)
        if faster is not None:
            tensors, tokenizer = model_tensors(last), directory / TOKENIZER
            write_model(directory, last.config, tensors, tokenizer, compression=faster, notes=notes)
            report["verdicts"].append(SLOWER)
        write_atomic(directory / REPORT, json.dumps(report, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    for sentence in report["verdicts"]:
        log(f"compress: {sentence}")
    return report


def _run(
    before: GPT,
    step: CompressStep,
    context: Context,
    original: float,
    loss: float | None,
    entries: Sequence[Mapping[str, Any]],
) -> ChainStage:
    """Apply a step and keep what it made, whole, in its folder. `entries`: those of the steps before it."""
    result, scores = within_budget(before, step, context, original, loss)
    if result.fresh:
        entries = [{**entry, "superseded": True} for entry in entries]
    assert context.tokenizer is not None
    with atomic_directory(context.folder / FINISHED) as directory:
        tensors = model_tensors(result.model)
        entries = [*entries, result.entry]
        write_model(directory, result.model.config, tensors, context.tokenizer, compression=entries)
        about = {"scores": scores, "entry": result.entry, "details": result.details}
        write_atomic(directory / STEP, json.dumps(about) + "\n")
    stage = _finished(step, context.folder / FINISHED)
    assert stage is not None
    return stage


def _finished(step: CompressStep, directory: Path) -> ChainStage | None:
    """What a step made, where it has been finished: the model as it was saved, so that a chain that goes on is the one
    that was not stopped."""
    if not (directory / STEP).is_file():
        return None
    about = json.loads((directory / STEP).read_text())
    model, file_bytes = load_network(directory), (directory / TENSORS).stat().st_size
    return ChainStage(step.method, model, about["scores"], file_bytes, about["entry"], about["details"])


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
        "verdicts": verdicts(first, last) + [f"{step['name']}: {step['note']}" for step in steps if "note" in step],
        "file_ratio": last["file_bytes"] / first["file_bytes"],
        "file_ratio_to_bf16": 2 * last["file_bytes"] / first["file_bytes"],
        "bits_per_byte_rise": last["bits_per_byte"] / first["bits_per_byte"] - 1,
        "machine": machine.describe(),
    }


def served_in_floats(entries: Sequence[Mapping[str, Any]], stages: Sequence[ChainStage]) -> list[dict[str, Any]] | None:
    """The entries, saying that what is quantised is multiplied in floating point, where a step at batch 1 takes more of
    the processor after quantising than before; None where it does not."""
    at = max((number for number, stage in enumerate(stages) if number and stage.name == "quantize"), default=0)
    if not at or stages[at].model.config.d_model < NARROW:
        return None
    before, after = step_seconds([stages[at - 1].model, stages[at].model])
    if before >= SAME * after:
        return None
    return [{**entry, "serve": "floats"} if entry.get("method") == "quantize" else dict(entry) for entry in entries]


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
        better = ratio > 1 / SAME if speed else ratio < SAME
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
