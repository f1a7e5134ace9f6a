"""The layouts, networks and optimizers that `bench.quality.layouts` compares with one process."""

from __future__ import annotations

import dataclasses
from typing import Any

STEPS, ROWS, CONTEXT, VOCABULARY = 3, 16, 32, 203  # a vocabulary that no number of processes divides
LONG = 30_000  # tokens of a row
SMALL = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 4, "d_ff": 72}
NETWORKS: dict[str, dict[str, Any]] = {
    "full": SMALL | {"activation": "swiglu", "kv_heads": 4},
    "grouped": SMALL | {"kv_heads": 2, "activation": "relu", "qk_norm": True},
    "biases": SMALL | {"norm": "layernorm", "biases": True, "positions": "learned", "tied": False},
    "sparse": SMALL | {"attention": "sparse", "window": 8, "stride": 4, "pool": 4, "pooling": "conv"},
    "linear": SMALL | {"attention": "linear", "feature_map": "learned"},
    "lsh": SMALL | {"attention": "lsh", "lsh_span": 8, "lsh_rounds": 2},
    "mixed": SMALL | {"attention": ("full", "window"), "window": 8, "norm_placement": "both", "ngram_rows": 61},
    "ahead": SMALL | {"ahead": 1, "recompute": True},
    "experts": SMALL | {"experts": 4, "experts_active": 2, "experts_shared": 1, "balance": "loss"},
    "biased experts": SMALL | {"experts": 4, "experts_active": 2, "balance": "bias", "recompute": True},
    "reversible": SMALL | {"residual": "reversible"},
    "long": SMALL | {"attention": ("sparse", "linear"), "window": 256, "activation": "swiglu", "recompute": True},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A layout, a network and an optimizer; `more` keys of [parallel]."""

    name: str
    sizes: dict[str, int]
    network: str = "full"
    optimizer: str = "adamw"
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: int = ROWS
    context: int = CONTEXT

    @property
    def processes(self) -> int:
        """How many it takes."""
        product = 1
        for size in self.sizes.values():
            product *= size
        return product

    @property
    def row(self) -> str:
        """What it is called in the table."""
        return f"{self.name}, {self.network}, {self.optimizer}"


DP, FSDP, HSDP = {"data": 4}, {"shard": 4}, {"data": 2, "shard": 2}
TP, FSDP_TP, DP_TP = {"tensor": 4}, {"shard": 2, "tensor": 2}, {"data": 2, "tensor": 2}
TP2 = {"tensor": 2}


def pipeline_cases() -> list[Case]:
    """Each schedule, and what a stage has to get right: tied and untied embeddings, reversible streams, recomputed
    blocks, router losses, tokens further ahead."""
    two, split = {"pipeline": 2}, {"pipeline": 2, "tensor": 2}
    schedules = ("gpipe", "1f1b", "interleaved", "zero-bubble", "zbv")
    networks = {
        "gpipe": ("experts",),
        "1f1b": ("ahead", "biased experts", "lsh"),
        "interleaved": ("biases", "reversible"),
        "zero-bubble": ("sparse", "experts"),
        "zbv": ("biases", "mixed"),
    }
    keys = {name: {"pipeline_schedule": name} for name in schedules}
    return [
        *(Case(f"PP, {name}", two, "full", "muon", keys[name]) for name in schedules),
        *(Case(f"PP, {name}", two, each, "adamw", keys[name]) for name in schedules for each in networks[name]),
        Case("PP", {"pipeline": 4}, "full", "muon"),
        Case("DP × PP, zero-bubble", {"data": 2, "pipeline": 2}, "experts", "adamw", keys["zero-bubble"]),
        *(Case(f"PP × TP, {name}", split, "full", "muon", keys[name]) for name in ("1f1b", "zbv")),
        Case("PP × TP, interleaved", split, "biases", "adamw", keys["interleaved"]),
        Case("DP × TP × PP, 1f1b", {"data": 2} | split, "full", "muon", keys["1f1b"]),
        Case("DP × TP × PP, zero-bubble", {"data": 2} | split, "sparse", "adamw", keys["zero-bubble"]),
    ]


def expert_cases() -> list[Case]:
    """Experts over processes, alone and with the other axes. What the processes of the axis run at once is one
    micro-batch of one process, whose loads are balanced together."""
    all_rows, half = ({"micro_batch_tokens": ROWS * CONTEXT // parts} for parts in (1, 2))
    two = {"expert": 2}
    return [
        Case("EP", two, "experts", "muon", train=all_rows),
        Case("EP", {"expert": 4}, "experts", train=all_rows),
        Case("EP", two, "biased experts", train=all_rows),
        Case("DP × EP", {"data": 2} | two, "experts", "muon", train=half),
        Case("DP × EP", {"data": 2} | two, "biased experts", train=half),
        Case("EP × TP", two | {"tensor": 2}, "experts", train=all_rows),
        Case("EP × CP", two | {"context": 2}, "experts", train=all_rows),
    ]


def context_cases() -> list[Case]:
    """Tokens of rows over processes: every kind of attention, and the other axes."""
    two, four = {"context": 2}, {"context": 4}
    return [
        *(Case("CP", two, network, "muon") for network in ("full", "grouped", "sparse", "linear", "lsh", "mixed")),
        *(Case("CP", two, network) for network in ("biases", "reversible", "experts", "biased experts")),
        *(Case("CP", four, network) for network in ("full", "sparse", "linear", "lsh")),
        *(Case("DP × CP", {"data": 2} | two, network, "muon") for network in ("full", "mixed", "linear")),
        *(Case("CP × TP", two | {"tensor": 2}, network) for network in ("full", "sparse", "linear", "lsh")),
        *(Case("FSDP × CP", {"shard": 2} | two, network) for network in ("full", "sparse")),
        *(Case(f"CP, {LONG} tokens", two, network, rows=1, context=LONG) for network in ("full", "long")),
    ]


CASES = [
    *(Case("DP", DP, network, "muon") for network in ("full", "sparse", "experts")),
    Case("DP", DP, "biased experts"),
    *(Case("FSDP", FSDP, network, "muon") for network in ("full", "mixed", "lsh", "experts")),
    *(Case("FSDP", FSDP, network) for network in ("biases", "ahead", "biased experts")),
    Case("FSDP, not resharded", FSDP, "full", more={"reshard": False}),
    Case("HSDP", HSDP, "full", "muon"),
    Case("HSDP", HSDP, "linear"),
    *(Case("TP + SP", TP, network, "muon") for network in ("full", "sparse", "linear", "lsh", "experts")),
    *(Case("TP + SP", TP, network) for network in ("biases", "mixed", "ahead", "biased experts", "reversible")),
    *(Case("TP + SP", TP2, network, "muon") for network in ("grouped", "mixed")),
    *(Case("FSDP × TP", FSDP_TP, network, "muon") for network in ("grouped", "lsh", "experts")),
    *(Case("FSDP × TP", FSDP_TP, network) for network in ("full", "ahead", "biases")),
    *(Case("DP × TP", DP_TP, network, "muon") for network in ("full", "sparse")),
    *pipeline_cases(),
    *expert_cases(),
    *context_cases(),
]

CHANGES = [
    Case(name, sizes, "experts", "muon")
    for name, sizes in (("DP", DP), ("FSDP", FSDP), ("HSDP", HSDP), ("TP + SP", TP), ("FSDP × TP", FSDP_TP))
]
