"""Decoding and reading a prompt of one real model on this processor: ours in 32, 8 and 4 bits, beside llama.cpp at
equal bits and transformers; in turn, in one run.

    python -m bench.speed.decode_cpu MODEL.gguf [--threads 1] [--rounds 5] [--peer-python PYTHON] [--only KINDS]

MODEL.gguf: a file in Q4_1 (SmolLM2-135M-Instruct's). Its blocks are the 4-bit row for ours and for llama.cpp. Its
weights, as numbers, are exported by us as F32 and Q8_0, which both then read; W8A8 is ours alone. Each contestant is a
process of its own that waits while others are measured (A B A B, every second round backwards; the first round does not
count); figures are medians. llama.cpp tells its own times (`xllamacpp`, in PYTHON where it is not installed here);
transformers runs with a static cache, compiled, and eagerly, and the faster one counts. The floor is the bytes that a
step must read, divided by the bandwidth with which this machine reads a large array.

Writes bench/results/decode_cpu.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Results

RESULTS = Results("decode_cpu", packages=("transformers", "gguf", "xllamacpp"))
PROMPT, STEPS, READ, CONTEXT = 64, 64, 256, 512
READ_BYTES = 512 << 20  # many times what any cache holds
BITS = {"fp32": "F32", "8 bits": "Q8_0", "4 bits": "Q4_1"}


def tokens(count: int) -> list[int]:
    """A prompt of ordinary token ids."""
    return [1000 + 37 * n % 20_000 for n in range(count)]


def ours(path: Path, form: str, threads: int) -> Iterator[dict[str, float]]:
    """Rates of our model through `generate.decode`, as chat and server run it."""
    import torch

    from lmforge.formats.gguf import read_gguf
    from lmforge.generate.continuation import prefill
    from lmforge.generate.decode import Sampling, decode
    from lmforge.generate.lean import lean_of
    from lmforge.kernels.build import path_taken

    torch.set_num_threads(threads)
    model = read_gguf(path, CONTEXT, blocks=form in ("8 bits", "4 bits")).model
    if form == "W8A8":
        from lmforge.compress.method import CalibrationBatch
        from lmforge.compress.quantize import quantize

        model = quantize(model, [CalibrationBatch.of_tokens(torch.tensor([tokens(READ)]))])[0]
    sampling = Sampling(max_tokens=STEPS + 1, temperature=0)
    lean = lean_of(model)
    yield {"path": path_taken(), "bytes": lean.step_bytes if lean else 0}  # type: ignore[dict-item]
    while True:
        steps = decode(model, [tokens(PROMPT)], [sampling])
        next(steps)
        started = time.perf_counter()
        count = sum(1 for _ in steps)
        decoding = count / (time.perf_counter() - started)
        with torch.inference_mode():
            started = time.perf_counter()
            prefill(model, [tokens(READ)], CONTEXT)
            yield {"decode": decoding, "prefill": READ / (time.perf_counter() - started)}


def llama_cpp(path: Path, form: str, threads: int) -> Iterator[dict[str, float]]:
    """Rates that llama.cpp's server tells of a request."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def asked(prompt: list[int], count: int) -> dict[str, float]:
        request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        url, kind = f"{server.listening_address}/completion", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode(), kind)) as reply:
            timings: dict[str, float] = json.load(reply)["timings"]
        return timings

    yield {"path": str(xllamacpp.get_system_info())}  # type: ignore[dict-item]
    while True:
        decoding = asked(tokens(PROMPT), STEPS)["predicted_per_second"]
        yield {"decode": decoding, "prefill": asked(tokens(READ), 1)["prompt_per_second"]}


def transformers(path: Path, form: str, threads: int) -> Iterator[dict[str, float]]:
    """Rates of transformers in fp32: a static cache and a compiled step, or as it is; whichever decodes faster."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    compiled = torch.compile(model, dynamic=False) if form == "compiled" else model

    @torch.inference_mode()
    def run() -> dict[str, float]:
        cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
        prompt = torch.tensor([tokens(PROMPT)])
        last = model(prompt, past_key_values=cache, cache_position=torch.arange(PROMPT)).logits[:, -1:].argmax(-1)
        started = time.perf_counter()
        for step in range(STEPS):
            at = torch.tensor([PROMPT + step])
            last = compiled(last, past_key_values=cache, cache_position=at).logits[:, -1:].argmax(-1)
        decoding = STEPS / (time.perf_counter() - started)
        started = time.perf_counter()
        model(torch.tensor([tokens(READ)]), logits_to_keep=1)
        return {"decode": decoding, "prefill": READ / (time.perf_counter() - started)}

    run()
    yield {"path": f"transformers, {form}"}  # type: ignore[dict-item]
    while True:
        yield run()


KINDS: dict[str, Callable[[Path, str, int], Iterator[dict[str, float]]]] = {
    "ours": ours,
    "llama.cpp": llama_cpp,
    "transformers": transformers,
}


def work(kind: str, path: Path, form: str, threads: int) -> None:
    """A contestant's process: says when it is ready, and measures once for each line that it is sent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for figures in KINDS[kind](path, form, threads):
        print(json.dumps(figures), file=answers, flush=True)
        if not sys.stdin.readline():
            return


class Contestant:
    """A process that measures when it is asked to. `about`: what it said of itself."""

    def __init__(self, python: str, kind: str, path: Path, form: str, threads: int) -> None:
        self.name, self.kind, self.form = f"{kind}, {form}", kind, form
        command = [python, "-m", "bench.speed.decode_cpu", str(path), "--work", kind, "--form", form]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.about: dict[str, Any] = {}
        self.rates: dict[str, list[float]] = {"decode": [], "prefill": []}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended ({self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait(self) -> None:
        """Until it is ready to measure; all load at the same time."""
        self.about = self._answer()

    def measure(self, counts: bool) -> None:
        """One measurement of decoding and of reading."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for name, rate in self._answer().items():
            if counts:
                self.rates[name].append(rate)

    def close(self) -> None:
        """End its process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def exported(source: Path, folder: Path) -> dict[str, Path]:
    """The model's weights in the three types: its own file, and our exports of its numbers."""
    from lmforge.formats.export import EXPORTERS
    from lmforge.formats.gguf import read_gguf

    loaded, paths = read_gguf(source), {"4 bits": source}
    for form in ("fp32", "8 bits"):
        paths[form] = folder / f"{BITS[form]}.gguf"
        EXPORTERS["gguf"].write(loaded, paths[form], type=BITS[form])
    return paths


def bandwidth(threads: int) -> float:
    """Bytes per second with which so many threads read 512 MB on large pages (where the system has them), the best of
    6 each in 1, 4 and 8 streams."""
    import torch

    from lmforge.kernels.build import read_rate
    from lmforge.kernels.pages import on_large_pages

    array = torch.ones(READ_BYTES // 4)
    on_large_pages([array])
    return max(read_rate(array.data_ptr(), array.nbytes, threads, streams) for _ in range(6) for streams in (1, 4, 8))


def rows_of(contestants: list[Contestant], bytes_per_second: float) -> dict[str, dict[str, Any]]:
    """Figures by contestant, with the ratios that the claims are about."""
    rows: dict[str, dict[str, Any]] = {}
    for each in contestants:
        rows[each.name] = {name: statistics.median(rates) for name, rates in each.rates.items()} | {
            "spread": [min(each.rates["decode"]), max(each.rates["decode"])],
            "path": each.about["path"],
        }
    best = max((rows[each.name]["decode"] for each in contestants if each.kind == "transformers"), default=None)
    best_read = max((rows[each.name]["prefill"] for each in contestants if each.kind == "transformers"), default=None)
    for each in contestants:
        row = rows[each.name]
        if each.kind != "ours":
            continue
        row["step_bytes"] = each.about["bytes"]
        row["floor_tokens_per_second"] = bytes_per_second / each.about["bytes"]
        row["share_of_floor"] = row["decode"] / row["floor_tokens_per_second"]
        peer = rows.get(f"llama.cpp, {'8 bits' if each.form == 'W8A8' else each.form}")
        for name, theirs in (("decode", best), ("prefill", best_read)):
            if peer is not None:
                row[f"{name}_over_llama_cpp"] = row[name] / peer[name]
            if theirs is not None:
                row[f"{name}_over_transformers"] = row[name] / theirs
    return rows


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable, help="the Python in which xllamacpp is installed")
    parser.add_argument("--only", default=",".join(KINDS), help="of ours, llama.cpp, transformers")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.model, options.form, options.threads)
        return
    started = time.perf_counter()
    speed = bandwidth(options.threads)
    print(f"{options.threads} thread(s), {speed / 1e9:.1f} GB/s read", flush=True)
    kinds = options.only.split(",")
    if options.peer_python == sys.executable and importlib.util.find_spec("xllamacpp") is None:
        kinds = [kind for kind in kinds if kind != "llama.cpp"]
    with tempfile.TemporaryDirectory() as folder:
        paths = exported(options.model.resolve(), Path(folder))
        todo = [("ours", sys.executable, form, paths[form]) for form in BITS]
        todo += [("ours", sys.executable, "W8A8", paths["fp32"])]
        todo += [("llama.cpp", options.peer_python, form, paths[form]) for form in BITS]
        todo += [("transformers", sys.executable, form, paths["4 bits"]) for form in ("compiled", "eager")]
        chosen = [each for each in todo if each[0] in kinds]
        contestants = [Contestant(python, kind, path, form, options.threads) for kind, python, form, path in chosen]
        for each in contestants:
            each.wait()
        print(f"all ready after {time.perf_counter() - started:.0f} s", flush=True)
        for number in range(options.rounds + 1):
            for each in contestants[:: -1 if number % 2 else 1]:
                each.measure(number > 0)
        for each in contestants:
            each.close()
    rows = rows_of(contestants, speed)
    for name, row in rows.items():
        ratios = ", ".join(f"{key} {row[key]:.2f}" for key in row if "_over_" in key or key == "share_of_floor")
        print(f"{name:24} decode {row['decode']:8.1f}  prefill {row['prefill']:8.1f} tokens/s  {ratios}")
    about = {"threads": options.threads, "rounds": options.rounds, "model": options.model.name}
    suffix = f", {options.threads} threads" if options.threads > 1 else ""
    for name, row in rows.items():
        RESULTS.add(name + suffix, row, **about)
    RESULTS.add("read_bytes_per_second" + suffix, speed, **about)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
