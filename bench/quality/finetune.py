"""Fine-tuning on real data: every weight against low-rank adapters, on a text, a pair of texts, and questions about a
text.

    python -m bench.quality.finetune WORK [--data DATA] [--base RUN] [--only sst2 mrpc squad] [--ways full lora]

1. A small language model (4 layers of width 128, context 256, chat tokens) learns TinyStories and Wikipedia articles,
on one thread; or --base.
2. SST-2 (67,349 phrases of film reviews), MRPC (3,668 pairs of sentences) and SQuAD 1.1 (articles of Wikipedia), each
with every weight and with LoRA of rank 8, each in a process of its own; scored on the held-out parts of the same sets.

DATA is the folder with pretrain and benchmarks; by default LMFORGE_DATA or ../shared/data. What is done in WORK is not
done again, and what
--only and --ways leave out keeps its earlier result. Prints one JSON object, also written to
bench/results/finetune.json: score with its 95% interval, the most frequent label's, trained parameters, seconds of
processor time, and how much resident memory training added. SQuAD's articles are among those that the base learned; its
held-out articles are not.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.harness import Results, public_texts
from lmforge.evaluate.harness import evaluate
from lmforge.pipeline import run_stages
from lmforge.progress import log
from lmforge.recipe import load_recipe
from lmforge.record import write_atomic

RESULTS = Results("finetune")
BASE = """name = "base"
[corpus]
analyse_bytes = 0
[[corpus.sources]]
kind = "jsonl"
path = "{data}/pretrain/encyclopedia/wikipedia_squad_train_articles.jsonl.gz"
genre = "encyclopedia"
[[corpus.sources]]
kind = "jsonl"
path = "{data}/pretrain/stories/*iny*"
genre = "stories"
[tokens]
vocab_size = 4096
chat = true
[model]
layers = 4
d_model = 128
heads = 4
activation = "relu2"
norm = "layernorm"
qk_norm = true
[train]
steps = 450
batch_tokens = 4096
optimizer = "muon"
matrix_lr = 0.03
peak_lr = 5e-3
final_lr = 0.0
weight_decay = 0.0
threads = 1
compile = "off"
micro_batch_tokens = 2048
ensemble = 0
"""
TASKS = {
    "sst2": (
        'task = "classify"\nfields = ["sentence"]\nlabels = { 0 = "negative", 1 = "positive" }\n',
        "glue/sst2/train.jsonl.gz",
        "glue/sst2/dev.jsonl",
        {"steps": 60, "batch_tokens": 8192},
    ),
    "mrpc": (
        'task = "classify"\nfields = ["sentence1", "sentence2"]\nlabels = { 0 = "different", 1 = "same" }\n',
        "glue/mrpc/train.jsonl.gz",
        "glue/mrpc/dev.jsonl",
        {"steps": 60, "batch_tokens": 4096},
    ),
    "squad": (
        'task = "span"\nlong = "skip"\n',
        "squad/train_v1.1_articles.jsonl.gz",
        "squad/dev_v1.1_articles.jsonl.gz",
        {"steps": 60, "batch_tokens": 8192},
    ),
}
RATES = {"full": 1e-3, "lora": 2e-2}


def recipe_of(work: Path, data: Path, base: Path, task: str, way: str) -> Path:
    """The recipe of one fine-tuning, written into WORK."""
    keys, learned, asked, train = TASKS[task]
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**train, "peak_lr": RATES[way]}.items())
    path = work / f"{task}-{way}.toml"
    write_atomic(
        path,
        (
            f'name = "{task}-{way}"\nrun_dir = "{work / f"{task}-{way}"}"\n[corpus]\nholdout = 0.02\n[train]\n{lines}'
            'threads = 1\ncompile = "off"\nmicro_batch_tokens = 2048\n[evaluate]\nitems = 300\ntasks = ["answers"]\n'
            f'[finetune]\nbase = "{base}"\ntrain = "{data}/benchmarks/{learned}"\ntest = '
            f'"{data}/benchmarks/{asked}"\n{keys}' + ("lora = { rank = 8 }\n" if way == "lora" else "")
        ),
    )
    return path


def one(path: Path) -> dict[str, Any]:
    """One fine-tuning in this process: its figures."""
    torch.set_num_threads(1)
    recipe = load_recipe(path)
    run = recipe.directory
    run_stages(recipe, run, until="tokens")
    resident, started = psutil.Process().memory_info().rss, time.process_time()
    figures = run_stages(recipe, run, until="train")["train"]
    seconds, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    evaluate(recipe, {"model": run / "model"}, run / "corpus", run / "tokens", run / "scores")
    score = json.loads((run / "scores" / "answers.json").read_text())
    kept = (
        "metric",
        "value",
        "low",
        "high",
        "items",
        "macro_f1",
        "matthews",
        "exact",
        "in_context",
        "too_long",
        "baselines",
    )
    return {
        **{key: score[key] for key in kept if key in score},
        "trained_parameters": figures["trained_parameters"],
        "parameters": figures["parameters"],
        "steps": figures["steps"],
        "tokens": figures["tokens"],
        "valid_bits_per_byte_of_answers": figures["valid_bits_per_byte"],
        "cpu_seconds": round(seconds, 1),
        "memory_added_mb": round((peak - resident) / 1e6, 1),
        "checkpoint_bytes": sum(
            file.stat().st_size for file in max((run / "train" / "checkpoints").iterdir()).iterdir()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=public_texts())
    parser.add_argument("--base", type=Path, help="a run to begin with")
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--ways", nargs="*", choices=RATES, default=list(RATES))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        write_atomic(given.one.with_suffix(".json"), json.dumps(one(given.one), indent=1) + "\n")
        return
    work, data = given.work.resolve(), given.data.resolve()
    base = given.base.resolve() if given.base else work / "base"
    if not given.base:
        write_atomic(work / "base.toml", BASE.format(data=data))
        recipe = load_recipe(work / "base.toml", [f"run_dir={base}"])
        run_stages(recipe, base, until="train")
    for task in given.only:
        for way in given.ways:
            log(f"══ {task}, {way}")
            path = recipe_of(work, data, base, task, way)
            score = path.with_suffix(".json")
            if not score.exists():
                subprocess.run(
                    [sys.executable, "-m", "bench.quality.finetune", str(work), "--one", str(path)], check=True
                )
            RESULTS.add(f"results/{task}/{way}", json.loads(score.read_text()), threads=1)
    learned = json.loads((base / "record.json").read_text())["stages"]["train"]["figures"]
    RESULTS.add("base", {key: learned[key] for key in ("parameters", "steps", "tokens", "valid_bits_per_byte")})


if __name__ == "__main__":
    main()
