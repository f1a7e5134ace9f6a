"""What layouts cost one process: a step of training by this tree beside one by an older commit, in one run.

    python -m bench.speed.one_process [--against 08e9d27e96] [--rounds 8]        # about six minutes, alone

The older commit is unpacked into a folder of its own. Both trees make the same tokens from the same made-up texts, and
then train by turns (A B, B A, …), each time in a process of its own, the network and the optimizer of `make demo`
(recipes/laptop.toml) for the same steps; how a step is run is stated, so that neither chooses another way. Of each
training the median seconds of a step after the first tenth is taken, of each round the ratio of both. Writes
bench/results/one_process.json: the median ratio with the lowest and the highest, and whether the weights are the same
to the bit. The default is the last commit that knew no layout but copies of the network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Results
from bench.quality.planner_here import write_texts
from lmforge.machine import cores

RESULTS = Results("one_process")
BEFORE_LAYOUTS = "08e9d27e96"
STEPS = 80


def unpack(commit: str, folder: Path) -> Path:
    """The tree of a commit."""
    folder.mkdir()
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if packed.returncode:
        raise SystemExit(f"--against {commit}: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def write_recipe(folder: Path, name: str, steps: int) -> Path:
    """The recipe of one tree: the demo's network and optimizer, made-up texts."""
    demo = tomllib.loads((ROOT / "recipes" / "laptop.toml").read_text())
    train = demo["train"] | {"steps": steps, "threads": cores(), "micro_batch_tokens": 2048}
    train |= {"compile": "off", "precision": "fp32", "validate_tokens": 4096}
    sections = {
        "": {"name": name, "run_dir": str(folder / name)},
        "corpus": {"analyse_bytes": 0},
        "[corpus.sources]": {"kind": "folder", "path": str(folder / "texts")},
        "tokens": {"vocab_size": 2048, "context": demo["tokens"]["context"]},
        "model": demo["model"],
        "train": train,
    }  # as TOML says them: numbers, words, true and false look as in JSON
    lines = []
    for section, keys in sections.items():
        lines += [f"[{section}]"] if section else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def lmforge(tree: Path, cache: Path, *arguments: str) -> None:
    """One command of a tree; both keep what they found out of this machine in one cache of their own."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "lmforge.cli", *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree.name}: lmforge {' '.join(arguments)}: {done.stderr[-2000:]}")


def train(tree: Path, recipe: Path) -> tuple[float, str]:
    """Train from the beginning: the median seconds of a step, and the hash of the weights."""
    lmforge(tree, recipe.parent / "cache", "train", str(recipe), "--fresh")
    out = recipe.with_suffix("") / "train"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "seconds" in line]
    steps = [after - before for before, after in itertools.pairwise(ends)]
    files = json.loads((recipe.with_suffix("") / "model" / "manifest.json").read_text())["files"]
    return statistics.median(steps[len(steps) // 10 :]), files["model.safetensors"]["sha256"]


def main() -> None:
    """Unpack, prepare, train by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default=BEFORE_LAYOUTS, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_texts(folder / "texts")
        trees = {"now": ROOT, "before": unpack(arguments.against, folder / "tree")}
        recipes = {name: write_recipe(folder, name, arguments.steps) for name in trees}
        for name, tree in trees.items():
            lmforge(tree, folder / "cache", "run", str(recipes[name]), "--until", "tokens")
        seconds: dict[str, list[float]] = {name: [] for name in trees}
        hashes: dict[str, str] = {}
        for number in range(arguments.rounds):
            for name in list(trees) if number % 2 == 0 else list(trees)[::-1]:
                took, hashes[name] = train(trees[name], recipes[name])
                seconds[name].append(took)
            print(f"round {number + 1}: {seconds['now'][-1] / seconds['before'][-1]:.4f}", flush=True)
    print(json.dumps(figures(seconds, hashes), indent=1))
    if not arguments.dry:
        RESULTS.add(f"against {arguments.against}", figures(seconds, hashes), against=arguments.against)


def figures(seconds: dict[str, list[float]], hashes: dict[str, str]) -> dict[str, Any]:
    """Ratio first."""
    ratios = [now / before for now, before in zip(seconds["now"], seconds["before"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "rounds": len(ratios),
        "step_seconds": statistics.median(seconds["now"]),
        "step_seconds_before": statistics.median(seconds["before"]),
        "same_weights": hashes["now"] == hashes["before"],
    }


if __name__ == "__main__":
    main()
