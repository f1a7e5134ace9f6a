"""What bench/gpu.sh runs: speed of training steps on one GPU, then a training for the minutes that are left. See there.

Utilisation is model FLOPs (no recomputation counted) ÷ seconds ÷ the peak of a large bf16 product measured here; the
share of the card's stated peak stands beside it. A part that fails is told in its row, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness import FOLDER, ROOT, Results
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.plan.cost import TRAINING, flops_per_token
from lmforge.recipe import Train
from lmforge.train.optim import build_optimizers
from lmforge.train.precision import LossScaler, autocast

STATED_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # bf16, dense, FLOP/s
SIZES = {"124M": (12, 768, 12), "350M": (24, 1024, 16)}  # layers, width, heads
SMOKE = {"124M": (2, 64, 2), "350M": (2, 96, 3)}
VOCABULARY = 50_304


class Bench:
    """The sizes and the clock of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.smoke, self.peer, self.ends = arguments.smoke, arguments.peer, time.monotonic() + 60 * arguments.minutes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sizes = SMOKE if self.smoke else SIZES
        self.contexts, self.long_window = ((32, 96), 16) if self.smoke else ((1024, 30_000), 512)
        self.vocabulary = 300 if self.smoke else VOCABULARY
        self.row_tokens = 128 if self.smoke else 32_768  # of a step
        self.repeats = 2 if self.smoke else 8
        self.peak = self.matrix_peak()

    def matrix_peak(self) -> float:
        """FLOP/s of a large product in bfloat16."""
        size = 256 if self.smoke else 8192
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        seconds = self.seconds(lambda: a @ a, 10)
        return 2 * size**3 / seconds

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median of `repeats`, after two to warm up and compile."""
        times = []
        for _ in range(repeats + 2):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times[2:])

    def config(self, size: str, context: int, **changes: Any) -> GPTConfig:
        """A network of a size; long contexts through the sparse mixture."""
        layers, width, heads = self.sizes[size]
        sparse = {"attention": ("sparse",), "window": self.long_window, "stride": 1024, "pool": 128, "recompute": True}
        if self.smoke:
            sparse |= {"stride": 32, "pool": 8}
        return GPTConfig(
            vocab_size=self.vocabulary,
            context=context,
            layers=layers,
            d_model=width,
            heads=heads,
            kv_heads=heads,
            d_ff=4 * width,
            **({"activation": "relu2", "qk_norm": True} | (sparse if context == self.contexts[1] else {}) | changes),
        )

    def batch(self, rows: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random tokens."""
        tokens = torch.randint(
            self.vocabulary,
            (rows, context + 1),
            device=self.device,
            generator=torch.Generator(self.device).manual_seed(0),
        )
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def our_step(self, config: GPTConfig, rows: int, precision: str, compiled: bool) -> Callable[[], None]:
        """Forward, backward, clipping and update, as the training loop does them; AdamW, so that peers can be
        compared."""
        model = GPT(config)
        model.initialise(0)
        model.to(self.device)
        optimizers = build_optimizers(model, Train())
        loss_of = torch.compile(model.loss) if compiled else model.loss
        scaler = LossScaler()
        inputs, targets = self.batch(rows, config.context)

        def step() -> None:
            with autocast(precision, self.device):
                loss = loss_of(inputs, targets)
            (loss * ((scaler.scale if precision == "fp16" else 1.0) / inputs.numel())).backward()
            if precision == "fp16":
                scaler.unscale(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers.values():
                optimizer.step()
            model.zero_grad(set_to_none=True)

        return step

    def row(self, what: str, config: GPTConfig, rows: int, precision: str = "bf16") -> dict[str, Any]:
        """One line of the tables."""
        seconds = self.seconds(self.our_step(config, rows, precision, compiled=not self.smoke), self.repeats)
        tokens = rows * config.context
        flops = TRAINING * sum(flops_per_token(config, config.context).values()) * tokens / seconds
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        found = {
            "what": what,
            "context": config.context,
            "precision": precision,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            "utilization": flops / self.peak,
            "memory_bytes": memory,
        }
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        if stated := next((value for name, value in STATED_PEAKS.items() if name in card), None):
            found["utilization_of_stated_peak"] = flops / stated
        return found

    def utilisation(self) -> list[dict[str, Any]]:
        """Both sizes at both contexts."""
        return [
            tried(
                lambda size=size, context=context: self.row(
                    size, self.config(size, context), max(1, self.row_tokens // context)
                )
            )
            for context in self.contexts
            for size in self.sizes
        ]

    def precisions(self) -> dict[str, Any]:
        """bf16 and fp16 mixed, fp32 and fp32 with TF32 products, same network, same batch."""
        found: dict[str, Any] = {}
        config, rows = self.config("124M", self.contexts[0]), max(1, self.row_tokens // 4 // self.contexts[0])
        for name, precision, tf32 in (
            ("bf16", "bf16", False),
            ("fp16", "fp16", False),
            ("fp32", "fp32", False),
            ("tf32", "fp32", True),
        ):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            found[name] = tried(lambda precision=precision: self.row("124M", config, rows, precision))
        torch.backends.cuda.matmul.allow_tf32 = False
        exact = found["fp32"].get("seconds")
        for name in ("bf16", "fp16"):
            if exact and "seconds" in found[name]:
                found[f"{name}_over_fp32"] = exact / found[name]["seconds"]
        return found

    def beside_nanogpt(self) -> dict[str, Any]:
        """Same architecture, bf16, compiled, fused AdamW, in turn."""
        if self.peer is None:
            return {"left_out": "no --peer: a checkout of karpathy/nanoGPT"}
        sys.path.insert(0, str(self.peer))
        from model import GPT as PeerGPT  # nanoGPT's file
        from model import GPTConfig as PeerConfig

        layers, width, heads = self.sizes["124M"]
        context = self.contexts[0]
        rows = max(1, self.row_tokens // 2 // context)
        config = self.config("124M", context, activation="gelu", norm="layernorm", positions="learned", qk_norm=False)
        ours = self.our_step(config, rows, "bf16", compiled=not self.smoke)
        shape = {
            "block_size": context,
            "vocab_size": self.vocabulary,
            "n_layer": layers,
            "n_head": heads,
            "n_embd": width,
        }
        peer = PeerGPT(PeerConfig(**shape, dropout=0.0, bias=False))
        peer.to(self.device)
        optimizer = peer.configure_optimizers(0.1, 6e-4, (0.9, 0.95), self.device.type)
        run = peer if self.smoke else torch.compile(peer)
        inputs, targets = self.batch(rows, context)

        def theirs() -> None:
            with autocast("bf16", self.device):
                _, loss = run(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        pairs = [
            (self.seconds(ours, self.repeats), self.seconds(theirs, self.repeats))
            for _ in range(1 if self.smoke else 3)
        ]
        return {
            "tokens": rows * context,
            "ours_seconds": [a for a, _ in pairs],
            "nanogpt_seconds": [b for _, b in pairs],
            "nanogpt_over_ours": statistics.median(b / a for a, b in pairs),
        }

    def trained(self, tokens_per_second: float, folder: Path) -> dict[str, Any]:
        """The recipe recipes/gpu.toml for the time that is left, through the pipeline; figures of train and
        evaluate."""
        left = self.ends - time.monotonic() - (5 if self.smoke else 75)  # corpus, tokens, compilation, scores
        batch = 256 if self.smoke else 131_072
        steps = max(4, int(left * tokens_per_second * 0.8 / batch)) if not self.smoke else 4
        sets: dict[str, Any] = {"run_dir": f'"{folder / "run"}"', "train.steps": steps}
        if texts := os.environ.get("LMFORGE_DATA"):
            sets["corpus.sources"] = f'[{{kind = "jsonl", path = "{texts}/pretrain/stories", genre = "stories"}}]'
        if self.smoke:
            sets |= {
                "tokens.vocab_size": 300,
                "tokens.context": 32,
                "tokens.sample_bytes": 200_000,
                "model.layers": 1,
                "model.d_model": 32,
                "model.heads": 2,
                "train.batch_tokens": batch,
                "train.micro_batch_tokens": 128,
                "train.compile": "off",
                "train.threads": 1,
                "corpus.sources": f'[{{kind = "folder", path = "{ROOT / "docs"}"}}]',
                "evaluate.max_tokens": 2000,
                "evaluate.items": 1,
                "evaluate.tasks": '["bits_per_byte"]',
                "corpus.analyse_bytes": 0,
            }
        command = [
            sys.executable,
            "-m",
            "lmforge.cli",
            "run",
            str(ROOT / "recipes" / "gpu.toml"),
            "--until",
            "evaluate",
            "--json",
        ]
        done = subprocess.run(
            [*command, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=max(60.0, self.ends - time.monotonic()),
        )
        if done.returncode:
            return {"failed": f"exit status {done.returncode}; its messages are above"}
        figures = json.loads(done.stdout)
        return {
            "train": {
                key: figures["train"][key]
                for key in ("steps", "tokens", "seconds", "tokens_per_second", "valid_bits_per_byte", "way")
            },
            "scores": figures["evaluate"],
        }


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it finds, or why it did not: a benchmark of minutes on a lent machine goes on."""
    try:
        return work()
    except Exception as error:  # whatever a driver or compiler raises
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch._dynamo.reset()


def main() -> None:
    """All parts; the file is written after each, so that a cut run leaves what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes on any machine, to try the command")
    parser.add_argument("--peer", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    name = "gpu_smoke" if arguments.smoke else "gpu"
    results = Results(name, packages=("numpy",), folder=Path(os.environ.get("OUT") or FOLDER))
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"

    def keep(part: str, value: Any) -> None:
        results.add(part, value, device=device, bf16_peak=bench.peak)
        print(f"{part}: {json.dumps(value)}", flush=True)

    utilisation = bench.utilisation()
    keep("utilisation", utilisation)
    keep("precisions", bench.precisions())
    keep("beside_nanogpt", tried(bench.beside_nanogpt))
    speed = next((row["tokens_per_second"] for row in utilisation if "tokens_per_second" in row), 1e5)
    trained = results.path.parent if arguments.smoke else ROOT / "runs" / "gpu-bench"
    keep("trained", tried(lambda: bench.trained(speed, trained)))


if __name__ == "__main__":
    main()
