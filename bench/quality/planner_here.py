"""The planner against this machine: it is measured once, then ten small recipes are foretold and run.

    python -m bench.quality.planner_here               # all: about five minutes, alone on the machine
    python -m bench.quality.planner_here --memory      # peak memory only; a loaded machine will do

Recipes differ in size, kind of attention, recomputation, experts, optimizer and number of ranks. Of each rank's process
the system's own account of its peak is taken, of a run the median seconds of a step after the first three; the largest
rank counts. Writes bench/results/planner_here.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import Results
from lmforge.machine import cores
from lmforge.plan.hardware import detect
from lmforge.plan.here import KINDS, Speeds
from lmforge.plan.probe import measure, process_bytes
from lmforge.plan.simulate import plan
from lmforge.recipe import Recipe, parse_recipe

RESULTS = Results("planner_here")
STEPS = 25
FEW = 4  # steps where memory alone is of interest
WARM = 3  # first steps that do not count for the time
VOCABULARY = 2048
SEEN = ("dense 4 x 256", "deep 12 x 192")  # on which the memory formulas' one constant was set (`simulate`)

# name → (ranks, sections of the recipe)
RUNS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "dense 4 x 256": (1, {"model": {"layers": 4, "d_model": 256, "heads": 4}}),
    "dense 3 x 768": (1, {"model": {"layers": 3, "d_model": 768, "heads": 12}}),
    "deep 12 x 192": (1, {"model": {"layers": 12, "d_model": 192, "heads": 3, "norm": "layernorm"}}),
    "recompute 6 x 384": (1, {"model": {"layers": 6, "d_model": 384, "heads": 6, "recompute": True}}),
    "sparse 4 x 256 at 2048": (
        1,
        {
            "model": {
                "layers": 4, "d_model": 256, "heads": 4, "attention": "sparse", "window": 128, "stride": 256,
                "pool": 64,
            },
            "tokens": {"context": 2048},
        },
    ),
    "linear 4 x 256 at 1024": (
        1,
        {"model": {"layers": 4, "d_model": 256, "heads": 4, "attention": "linear"}, "tokens": {"context": 1024}},
    ),
    "experts 4 x 256": (1, {"model": {"layers": 4, "d_model": 256, "heads": 4, "experts": 8, "d_ff": 2048}}),
    "muon 5 x 320, 2 ranks": (
        2,
        {
            "model": {"layers": 5, "d_model": 320, "heads": 5, "activation": "swiglu", "kv_heads": 1},
            "train": {"optimizer": "muon"},
        },
    ),
    "experts 3 x 256, 2 ranks": (
        2,
        {"model": {"layers": 3, "d_model": 256, "heads": 4, "experts": 4, "d_ff": 1024, "experts_active": 1}},
    ),
    "dense 4 x 320, 4 ranks": (4, {"model": {"layers": 4, "d_model": 320, "heads": 5}}),
}  # fmt: skip


def recipe_of(name: str, folder: Path, steps: int = STEPS) -> Recipe:
    """The recipe of a run; what is not of interest is pinned."""
    ranks, sections = RUNS[name]
    train = {"steps": steps, "batch_tokens": 2048, "threads": 1, "compile": "off", "precision": "fp32"}
    train |= {"validate_tokens": 2048, "validate_every": steps}  # the seconds foretold are those of a step alone
    train |= sections.get("train", {})
    train["micro_batch_tokens"] = train["batch_tokens"] // ranks
    return parse_recipe(
        {
            "name": name.replace(" ", "-").replace(",", ""),
            "run_dir": str(folder / name.replace(" ", "-").replace(",", "")),
            "corpus": {"sources": [{"kind": "folder", "path": str(folder / "texts")}], "analyse_bytes": 0},
            "tokens": {"vocab_size": VOCABULARY, "context": 256} | sections.get("tokens", {}),
            "model": sections["model"],
            "parallel": sections.get("parallel", {}),
            "train": train,
        },
        where=name,
    )


def write_texts(folder: Path) -> None:
    """Some megabytes of made-up sentences."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(6000)]
    folder.mkdir(parents=True)
    for number in range(20):
        lines = (" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(700))
        (folder / f"{number:02}.txt").write_text("\n".join(lines))


def run(name: str, folder: Path, tokens: Path, steps: int) -> dict[str, Any]:
    """Train in processes of its own: peak bytes of the largest rank, median seconds of a step."""
    ranks, _ = RUNS[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "bench.quality.planner_here",
        "--worker",
        name,
        str(folder),
        str(tokens),
        str(steps),
    ]
    started = []
    for rank in range(ranks):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [process.communicate(timeout=1800) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{name}: a rank ended with {process.returncode}\n{errors.decode()[-2000:]}")
    answers = [json.loads(out.decode().splitlines()[-1]) for out, _ in said]
    return {
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
        "step_seconds": answers[0]["step_seconds"],
    }


def worker(name: str, folder: Path, tokens: Path, steps: int) -> None:
    """One rank."""
    import lmforge.cli  # noqa: F401  # as the command has it
    from lmforge.allocator import keep_freed_memory
    from lmforge.machine import peak_bytes
    from lmforge.train.journal import read_lines
    from lmforge.train.loop import train

    keep_freed_memory()
    recipe = recipe_of(name, folder, steps)
    out = recipe.directory / "train"
    train(recipe, tokens, out, recipe.directory / "model")
    lines = [line for line in read_lines(out / "metrics.jsonl") if "seconds" in line]
    ends = [line["seconds"] for line in lines]
    steps = [after - before for before, after in itertools.pairwise(ends)][WARM - 1 :]
    print(json.dumps({"peak_bytes": peak_bytes(), "step_seconds": statistics.median(steps)}))


def foretold(name: str, folder: Path, steps: int, speeds: Speeds) -> dict[str, Any]:
    """What the planner says of a run."""
    ranks, _ = RUNS[name]
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        figures = plan(recipe_of(name, folder, steps), detect(measure=False), speeds=speeds)
    finally:
        del os.environ["WORLD_SIZE"]
    return {
        "memory_bytes": sum(figures["memory_bytes_per_device"].values()),
        "components": figures["memory_bytes_per_device"],
        "step_seconds": sum(figures["step_seconds"].values()),
        "seconds": figures["step_seconds"],
    }


def compare(name: str, folder: Path, tokens: Path, steps: int, speeds: Speeds) -> dict[str, Any]:
    """One run, foretold and measured."""
    expected, found = foretold(name, folder, steps, speeds), run(name, folder, tokens, steps)
    row = {
        "ranks": RUNS[name][0],
        "memory_foretold": expected["memory_bytes"],
        "memory_measured": found["peak_bytes"],
        "memory_error": round(expected["memory_bytes"] / found["peak_bytes"] - 1, 4),
        "memory_components": expected["components"],
    }
    if steps == STEPS:
        row |= {
            "seconds_foretold": expected["step_seconds"],
            "seconds_measured": found["step_seconds"],
            "seconds_error": round(expected["step_seconds"] / found["step_seconds"] - 1, 4),
            "seconds_parts": expected["seconds"],
        }
    return row


def summary(rows: dict[str, dict[str, Any]], what: str) -> dict[str, Any]:
    """Of the errors of memory or seconds: over all runs, and over those that no constant was set on."""
    errors = {name: abs(row[f"{what}_error"]) for name, row in rows.items() if f"{what}_error" in row}
    if not errors:
        return {}
    unseen = [error for name, error in errors.items() if what != "memory" or name not in SEEN]
    figures = {"runs": len(errors), "median": statistics.median(errors.values()), "worst": max(errors.values())}
    return figures | {"unseen": len(unseen), "median_unseen": statistics.median(unseen), "worst_unseen": max(unseen)}


def main() -> None:
    """Foretell, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=4, metavar=("NAME", "FOLDER", "TOKENS", "STEPS"))
    parser.add_argument("--memory", action="store_true", help="peak memory only")
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="some of the runs")
    arguments = parser.parse_args()
    if arguments.worker:
        name, folder, tokens, steps = arguments.worker
        worker(name, Path(folder), Path(tokens), int(steps))
        return
    steps = FEW if arguments.memory else STEPS
    speeds = memory_alone() if arguments.memory else measure()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_texts(folder / "texts")
        from lmforge.pipeline import run_stages

        first = recipe_of(next(iter(RUNS)), folder)
        run_stages(first, first.directory, until="tokens")
        rows = {}
        for name in arguments.only:
            rows[name] = compare(name, folder, first.directory / "tokens", steps, speeds)
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
            RESULTS.add(f"{'memory' if arguments.memory else 'both'}/{name}", rows[name])
    for what in ("memory", "seconds"):
        if (figures := summary(rows, what)) and arguments.only == list(RUNS):
            print(f"{what}: {figures}", flush=True)
            RESULTS.add(f"errors/{what}", figures)


def memory_alone() -> Speeds:
    """A machine of which only the memory of a process was measured."""
    return Speeds(dict.fromkeys(KINDS, 0.0), 0.0, 0.0, 1.0, 0.0, 0.0, process_bytes(), cores())


if __name__ == "__main__":
    main()
