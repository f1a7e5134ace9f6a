"""One training step of ours, nanoGPT, litgpt and the Trainer, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RATE, DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0

SIZES = {  # name: d_model, layers, context, heads, rows
    "d128": (128, 4, 256, 4, 16),
    "d384": (384, 6, 256, 6, 16),
    "d768": (768, 12, 512, 12, 4),
}


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


# long: follows the peer's own API, argument by argument
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
