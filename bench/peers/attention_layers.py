"""Attention layers of transformers, and ours and FlexAttention beside them."""

from __future__ import annotations

import statistics
import time
from typing import Any

SHAPE = {
    "vocab_size": 4096,
    "context": 30_000,
    "layers": 6,
    "d_model": 128,
    "heads": 2,
    "kv_heads": 2,
    "d_ff": 512,
    "norm": "layernorm",
}
RECOMPUTE, REVERSIBLE = {"recompute": True}, {"residual": "reversible"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "full-recompute": RECOMPUTE,
    "full-reversible": REVERSIBLE,
    "window": {"attention": ("window",)},
    "strided": {"attention": ("strided",)},
    "pooled": {"attention": ("pooled",)},
    "pooled max": {"attention": ("pooled",), "pooling": "max"},
    "pooled conv": {"attention": ("pooled",), "pooling": "conv"},
    "sparse": {"attention": ("sparse",)},
    "sparse-recompute": {"attention": ("sparse",)} | RECOMPUTE,
    "sparse-reversible": {"attention": ("sparse",)} | REVERSIBLE,
    "sparse-both": {"attention": ("sparse",)} | RECOMPUTE | REVERSIBLE,
    "lsh": {"attention": ("lsh",)},
    "linear": {"attention": ("linear",)},
    "linear-recompute": {"attention": ("linear",)} | RECOMPUTE,
}

PEERS = ("longformer", "bigbird", "reformer")


def peer_child(name: str, threads: int) -> dict[str, float]:
    """Seconds of forward and backward of one layer of a peer, width 128, 2 heads. Longformer looks 256 tokens back and
    256 ahead, BigBird at blocks of 64 (3 near, 2 at the ends, 1 at random), Reformer at chunks of 64 and the one before
    in 4 rounds, as ours."""
    import torch
    import transformers as t

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    common = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 512,
        "vocab_size": 512,
    }
    found = {}
    for length in (1024, 4096, 16_384):
        if name == "longformer":
            model: Any = t.LongformerModel(
                t.LongformerConfig(**common, attention_window=512, max_position_embeddings=length + 2)
            )
        elif name == "bigbird":
            model = t.BigBirdModel(
                t.BigBirdConfig(**common, block_size=64, num_random_blocks=1, max_position_embeddings=length + 2)
            )
        else:
            model = t.ReformerModel(
                t.ReformerConfig(
                    vocab_size=512,
                    hidden_size=128,
                    num_attention_heads=2,
                    attention_head_size=64,
                    feed_forward_size=512,
                    attn_layers=["lsh"],
                    num_hashes=4,
                    lsh_attn_chunk_length=64,
                    axial_pos_embds=False,
                    max_position_embeddings=length,
                    is_decoder=True,
                    num_buckets=2 * (length // 64),
                )
            )
        model.train()
        tokens = torch.randint(5, 500, (1, length))
        times = []
        for _ in range(4 if length < 16_000 else 2):
            started = clock()
            model(tokens).last_hidden_state.sum().backward()
            times.append(clock() - started)
        found[str(length)] = statistics.median(times[1:])
    return found


def our_layer(kind: str, threads: int) -> dict[str, float]:
    """The same of one of our blocks."""
    import torch

    from lmforge.model.gpt import GPT, GPTConfig

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    found = {}
    for length in (1024, 4096, 16_384):
        shape = SHAPE | {"layers": 1, "context": length, "window": 256, "lsh_span": 64}
        model = GPT(GPTConfig(**shape, **KINDS[kind]))  # type: ignore[arg-type]
        model.initialise(1)
        tokens = torch.randint(5, 500, (1, length))
        times = []
        for _ in range(4 if length < 16_000 else 3):
            started = clock()
            model.hidden(tokens).sum().backward()
            times.append(clock() - started)
        found[str(length)] = statistics.median(times[1:])
    return found


def flex_forward(threads: int) -> dict[str, Any]:
    """Forward of a window of 256 alone, width 128, 2 heads: compiled FlexAttention (it has no backward on CPUs) and
    ours."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from lmforge.model.kernels.banded import banded_attention, visible

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    compiled, found = torch.compile(flex_attention), {}
    none, seen = torch.empty(1, 2, 0, 64), torch.empty(0, dtype=torch.long)
    for length in (4096, 16_384):
        q, k, v = (torch.randn(1, 2, length, 64) for _ in range(3))
        mask = create_block_mask(visible(length, 256, seen), None, None, length, length, device="cpu")
        for name, call in (
            ("flex", lambda q=q, k=k, v=v, mask=mask: compiled(q, k, v, block_mask=mask)),
            ("ours", lambda q=q, k=k, v=v: banded_attention(q, k, v, 256, none, none, seen)),
        ):
            times = []
            with torch.no_grad():
                for _ in range(7):
                    started = clock()
                    call()
                    times.append(clock() - started)
            found.setdefault(name, {})[str(length)] = statistics.median(times[1:])
    return found
