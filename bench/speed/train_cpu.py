"""Training speed on this CPU beside nanoGPT, litgpt and transformers' Trainer: same architecture, batch, threads,
alternately in one run.

    python -m bench.speed.train_cpu --peer .peers/nanoGPT --peer-python .peers/venv/bin/python --litgpt-python
    .peers/litgpt/bin/python

Each way (a side and a precision, such as ours-bf16) is a process of its own that waits while the others are timed. Ours
and nanoGPT start from the same weights, and these two see the same batches, so their losses can be compared step by
step; litgpt has rotary for learned positions, and the Trainer's GPT-2 has biases. nanoGPT trains in fp32 on a CPU:
nanogpt-bf16 is its step under autocast, which it does not do itself. The best way of each side counts. The floor is the
matrix products alone at this machine's measured fp32 peak, which bfloat16 can pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Results

RESULTS = Results("train_cpu")

SIZES = {  # name: d_model, layers, context, heads, rows
    "d128": (128, 4, 256, 4, 16),
    "d384": (384, 6, 256, 6, 16),
    "d768": (768, 12, 512, 12, 4),
}
RATE, DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0
WAYS = (
    "ours-fp32",
    "nanogpt-fp32",
    "litgpt-fp32",
    "trainer-fp32",
    "ours-bf16",
    "nanogpt-bf16",
    "litgpt-bf16",
    "trainer-bf16",
)
# in fp32; slower than eager at all sizes here (docs/internals/log.md), so only on request
OTHERS = ("ours-compiled", "nanogpt-compiled")


def batches(vocab: int, rows: int, context: int, step: int) -> Any:
    """The same learnable batch for everybody: each token follows from the one before it, with noise."""
    import torch

    generator = torch.Generator().manual_seed(1000 + step)
    noise = torch.randint(0, 7, (rows, context + 1), generator=generator).cumsum(1)
    tokens = (noise * 17 + torch.randint(0, vocab, (rows, 1), generator=generator)) % vocab
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def our_network(size: str, vocab: int) -> Any:
    """nanoGPT's architecture as an lmforge network: learned positions, LayerNorm without bias, GELU, tied output."""
    from lmforge.model.gpt import GPT, GPTConfig

    width, layers, context, heads, _ = SIZES[size]
    config = GPTConfig(
        vocab_size=vocab,
        context=context,
        layers=layers,
        d_model=width,
        heads=heads,
        kv_heads=heads,
        d_ff=4 * width,
        activation="gelu",
        norm="layernorm",
        positions="learned",
    )
    model = GPT(config)
    model.initialise(1)
    return model


def ours(size: str, vocab: int, threads: int, mode: str) -> Any:
    """A function step(i) → loss that runs our training step."""
    import torch

    from lmforge.allocator import keep_freed_memory
    from lmforge.parallel.thread_replicas import Replicas
    from lmforge.recipe import parse_recipe
    from lmforge.train.autotune import choose, describe
    from lmforge.train.optim import build_optimizers
    from lmforge.train.precision import autocast

    keep_freed_memory()
    _, _, context, _, rows = SIZES[size]
    model = our_network(size, vocab)
    recipe = parse_recipe(
        {
            "tokens": {"context": context},
            "train": {
                "threads": threads,
                "compile": "on" if mode == "compiled" else "off",
                "peak_lr": RATE,
                "weight_decay": DECAY,
                "precision": "bf16" if mode == "bf16" else "fp32",
            },
        }
    )
    way = choose(recipe, model, torch.device("cpu"), rows, 1000)
    networks = Replicas(model, way.replicas, way.threads)
    optimizers = build_optimizers(model, recipe.train)
    compiled_loss = torch.compile(model.loss) if way.compiled else None
    piece = max(1, way.micro_batch_tokens // context)
    print(f"ours: {describe(way)}", flush=True)

    def gradients(network: Any, inputs: Any, targets: Any, mine: range) -> float:
        total = torch.zeros(())
        for first in range(mine.start, mine.stop, piece):
            part = slice(first, min(first + piece, mine.stop))
            with autocast(way.precision, inputs.device):
                loss = (compiled_loss or network.loss)(inputs[part], targets[part])
            (loss / inputs.numel()).backward()
            total += loss.detach() / inputs.numel()
        return float(total)

    def step(index: int) -> float:
        inputs, targets = batches(vocab, rows, context, index)
        total = sum(networks.run(lambda network, mine: gradients(network, inputs, targets, mine), range(rows)))
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if norm + 1e-6 > CLIP:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), CLIP, norm)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return total

    return step


def nanogpt(size: str, vocab: int, threads: int, mode: str, directory: Path) -> Any:
    """A function step(i) → loss that runs nanoGPT's own model and optimizer, from our initial weights."""
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", directory / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    width, layers, context, heads, rows = SIZES[size]
    model = module.GPT(
        module.GPTConfig(
            block_size=context, vocab_size=vocab, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=False
        )
    )
    names = {"embed": "transformer.wte", "learned_positions": "transformer.wpe", "norm": "transformer.ln_f"}
    inner = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "ff_norm": "ln_2",
        "ff.up": "mlp.c_fc",
        "ff.down": "mlp.c_proj",
    }
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in our_network(size, vocab).named_parameters():
            stem = name.removesuffix(".weight")
            if stem.startswith("blocks."):
                _, layer, part = stem.split(".", 2)
                stem = f"transformer.h.{layer}.{inner[part]}"
            else:
                stem = names[stem]
            theirs[f"{stem}.weight"].copy_(tensor)
    torch.set_num_threads(threads)
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, "cpu")
    run = torch.compile(model) if mode == "compiled" else model

    def step(index: int) -> float:
        inputs, targets = batches(vocab, rows, context, index)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
            _, loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def litgpt(size: str, vocab: int, threads: int, mode: str) -> Any:
    """A function step(i) → loss: litgpt's network and the step of its pretrain.py, through Fabric."""
    import lightning
    import torch
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    width, layers, context, heads, rows = SIZES[size]
    torch.set_num_threads(threads)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if mode == "bf16" else "32-true")
    config = Config(
        block_size=context,
        vocab_size=vocab,
        padded_vocab_size=vocab,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        bias=False,
        intermediate_size=4 * width,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
    )
    model = fabric.setup(GPT(config))
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    )

    def step(index: int) -> float:
        inputs, targets = batches(vocab, rows, context, index)
        loss = chunked_cross_entropy(model(inputs), targets, chunk_size=0)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def trainer(size: str, vocab: int, threads: int, mode: str, out: Any) -> None:
    """transformers' own loop over its GPT-2; it answers the lines on stdin between its steps."""
    import torch
    import transformers

    width, layers, context, heads, rows = SIZES[size]
    torch.set_num_threads(threads)

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64 * rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            inputs, _ = batches(vocab, 1, context, index)
            return {"input_ids": inputs[0], "labels": inputs[0]}

    class Turns(transformers.TrainerCallback):
        left, started = 0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not self.left:
                line = sys.stdin.readline()
                control.should_training_stop = not line
                self.left, self.started = int(line or 1), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.left -= 1
            if not self.left and not control.should_training_stop:
                out.write(json.dumps({"seconds": time.perf_counter() - self.started, "losses": []}) + "\n")
                out.flush()

    config = transformers.GPT2Config(
        vocab_size=vocab,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=mode == "bf16",
            per_device_train_batch_size=rows,
            max_steps=1_000_000,
            learning_rate=RATE,
            weight_decay=DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        run = transformers.Trainer(
            transformers.GPT2LMHeadModel(config), settings, train_dataset=Rows(), callbacks=[Turns()]
        )
        out.write("ready\n")
        out.flush()
        run.train()


def worker(way: str, size: str, vocab: int, threads: int, peer: Path) -> None:
    """Answer each line `STEPS` on stdin with seconds and losses on stdout."""
    side, mode = way.split("-")
    out = sys.stdout
    sys.stdout = sys.stderr
    if side == "trainer":
        trainer(size, vocab, threads, mode, out)
        return
    step = (
        ours(size, vocab, threads, mode)
        if side == "ours"
        else litgpt(size, vocab, threads, mode)
        if side == "litgpt"
        else nanogpt(size, vocab, threads, mode, peer)
    )
    out.write("ready\n")
    out.flush()
    done = 0
    for line in sys.stdin:
        started = time.perf_counter()
        losses = [step(done + i) for i in range(int(line))]
        out.write(json.dumps({"seconds": time.perf_counter() - started, "losses": losses}) + "\n")
        out.flush()
        done += int(line)


GROUPS = {  # of operations by name, for the profile
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_softmax",
        "aten::_softmax_backward_data",
    ),
    "activation": ("aten::gelu", "aten::gelu_backward"),
    "normalisation": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "loss beside its products": (
        "aten::_log_softmax",
        "aten::gather",
        "aten::scatter_add_",
        "aten::exp_",
        "aten::sum",
        "_LinearCrossEntropy",
    ),
    "optimizer and clipping": (
        "aten::_fused_adamw_",
        "aten::_foreach_norm",
        "aten::_foreach_mul_",
        "aten::linalg_vector_norm",
    ),
    "copies, casts and sums": (
        "aten::copy_",
        "aten::add",
        "aten::add_",
        "aten::mul",
        "aten::mul_",
        "aten::cat",
        "aten::fill_",
        "aten::zero_",
        "aten::embedding",
        "aten::embedding_dense_backward",
    ),
}


def profile(size: str, vocab: int, mode: str) -> dict[str, float]:
    """Shares of the time of our step on one thread, by kind of operation; what no operation accounts for is Python's
    and autograd's."""
    import torch

    step = ours(size, vocab, 1, mode)
    step(0)
    step(1)
    with torch.profiler.profile() as found:
        started = time.perf_counter()
        step(2)
        whole = time.perf_counter() - started
    own = {each.key: each.self_cpu_time_total / 1e6 for each in found.key_averages()}
    shares = {group: sum(own.get(name, 0.0) for name in names) / whole for group, names in GROUPS.items()}
    return shares | {"Python, autograd and the rest": 1 - sum(shares.values())}


def matrix_peak(threads: int) -> float:
    """FLOP/s of the best of several large fp32 products."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 1536**3 / min(times)


def flops_per_token(size: str, vocab: int) -> float:
    """Forward and backward: 6 per matrix weight, and 6·T·D a layer for causal attention (half of 12·T·D)."""
    width, layers, context, _, _ = SIZES[size]
    return 6 * (layers * 12 * width * width + vocab * width) + layers * 6 * context * width


def measure(size: str, vocab: int, arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """All ways in turn, `rounds` times."""
    ways, threads, peer, rounds = arguments.way or WAYS, arguments.threads, arguments.peer, arguments.rounds
    command = [
        "-m",
        "bench.speed.train_cpu",
        "--size",
        size,
        "--vocab",
        str(vocab),
        "--threads",
        str(threads),
        "--peer",
        str(peer),
        "--worker",
    ]
    workers = {}
    for way in ways:  # one after another: each measures its fastest way alone
        python = {"litgpt": arguments.litgpt_python, "trainer": arguments.peer_python}.get(
            way.split("-")[0], Path(sys.executable)
        )
        workers[way] = process = subprocess.Popen(
            [python, *command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n", f"{way} did not start"
    times: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    peaks = []
    for turn in range(rounds + 1):
        peaks.append(matrix_peak(threads))
        for way, process in workers.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            losses[way] += answer["losses"]
            if turn:  # the first round warms up, and compiles
                times[way].append(answer["seconds"] / steps)
    for process in workers.values():
        assert process.stdin
        process.stdin.close()
        process.wait()
    _, _, context, _, rows = SIZES[size]
    speed = {way: rows * context / statistics.median(t) for way, t in times.items()}
    sides = list(dict.fromkeys(way.split("-")[0] for way in ways))
    best = {side: max((way for way in ways if way.startswith(side)), key=lambda way: speed[way]) for side in sides}

    def ratio(a: str, b: str) -> dict[str, float]:
        found = [theirs / mine for mine, theirs in zip(times[a], times[b], strict=True)]
        return {"ratio": statistics.median(found), "low": min(found), "high": max(found)}

    peak = max(peaks)
    pairs = [
        (way, way.replace("ours", "nanogpt"))
        for way in ways
        if way.startswith("ours") and way.replace("ours", "nanogpt") in ways
    ]
    apart = {
        mine: max(abs(a - b) / b for a, b in zip(losses[mine], losses[theirs], strict=True)) for mine, theirs in pairs
    }
    return {
        "size": size,
        "vocab": vocab,
        "tokens_per_second": {way: round(value) for way, value in speed.items()},
        "best": best,
        "best_over": {side: ratio(best["ours"], best[side]) for side in sides if side != "ours"},
        "same_precision": {
            theirs: ratio(mine, theirs)
            for mine in ways
            if mine.startswith("ours")
            for theirs in ways
            if theirs != mine and theirs.split("-")[1] == mine.split("-")[1]
        },
        "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": {way: value * flops_per_token(size, vocab) / peak for way, value in speed.items()},
        "largest_relative_loss_difference_to_nanogpt": apart,
    }


def main() -> None:
    """Measure every size, print a table, write bench/results/train_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=Path(".peers/nanoGPT"))
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=Path(".peers/venv/bin/python"),
        help="a Python with transformers and accelerate",
    )
    parser.add_argument(
        "--litgpt-python", type=Path, default=Path(".peers/litgpt/bin/python"), help="a Python with litgpt"
    )
    parser.add_argument("--way", choices=[*WAYS, *OTHERS], action="append", help="default: all but the compiled ones")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument(
        "--vocab", type=int, action="append", help="default: 65 (characters, as nanoGPT's CPU command) and 4096 (BPE)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="steps a turn (default: by size)")
    parser.add_argument(
        "--profile", action="store_true", help="instead: where the time of our step goes, on one thread"
    )
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if not (arguments.peer / "model.py").is_file():
        sys.exit(
            f"{arguments.peer}/model.py: not there; put a checkout of karpathy/nanoGPT there or name it with --peer"
        )
    vocabularies = arguments.vocab or [65, 4096]
    if arguments.worker:
        worker(arguments.worker, arguments.size[0], vocabularies[0], arguments.threads, arguments.peer)
        return
    if arguments.profile:
        for size in arguments.size or SIZES:
            for mode in ("fp32", "bf16"):
                shares = profile(size, vocabularies[-1], mode)
                print(
                    f"{size} vocab {vocabularies[-1]} {mode}: "
                    + ", ".join(f"{group} {share:.0%}" for group, share in shares.items()),
                    flush=True,
                )
        return
    commit = arguments.peer / "COMMIT"
    peer = "karpathy/nanoGPT " + (commit.read_text().strip() if commit.exists() else "unknown commit")
    for size in arguments.size or SIZES:
        for vocab in vocabularies:
            row = measure(size, vocab, arguments, arguments.steps or {"d128": 12, "d384": 2, "d768": 1}[size])
            RESULTS.add(f"{size} vocabulary {vocab}", row, threads=arguments.threads, peer=peer)
            rates = ", ".join(
                f"{way} {rate:,} ({row['share_of_peak'][way]:.0%})" for way, rate in row["tokens_per_second"].items()
            )
            beside = ", ".join(
                f"{side} {found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
                for side, found in row["best_over"].items()
            )
            print(
                f"{size} vocab {vocab}: tok/s (share of the fp32 peak) {rates}; {row['best']['ours']} over the best "
                f"of {beside}",
                flush=True,
            )


if __name__ == "__main__":
    main()
