"""The layouts, networks and optimizers that `bench.quality.layouts` compares with one process."""

from __future__ import annotations

import dataclasses
from typing import Any

STEPS, ROWS, CONTEXT, VOCABULARY = 3, 16, 32, 203  # a vocabulary that no number of processes divides
LONG = 30_000  # tokens of a row
LONG_NETWORKS = ("full", "long", "long sparse", "long lsh")
IMAGES = "images"  # the network whose rows have some
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
    "free experts": SMALL | {"experts": 4, "experts_active": 2, "balance": "none"},
    "experts with biases": SMALL
    | {"experts": 4, "experts_active": 2, "experts_shared": 1, "norm": "layernorm", "biases": True, "tied": False},
    IMAGES: SMALL | {"image_size": 4, "image_patch": 2, "image_channels": 1},
    "reversible": SMALL | {"residual": "reversible"},
    "long sparse": SMALL | {"layers": 2, "attention": "sparse", "window": 256, "stride": 64, "pool": 64},
    "long lsh": SMALL | {"layers": 2, "attention": "lsh", "lsh_rounds": 2},
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
        Case("PP, growing context", two, train={"context_schedule": [[0.0, CONTEXT // 2], [0.15, CONTEXT]]}),
        *(Case(f"PP, {name}", two, IMAGES, "adamw", keys[name]) for name in ("1f1b", "zbv")),
        Case("DP × PP, interleaved", {"data": 2} | two, IMAGES, "adamw", keys["interleaved"]),
    ]


def pipeline_with_others() -> list[Case]:
    """Processes that share a stage's weights, experts or tokens. Micro-batches of experts whose loads are not balanced
    may be of any rows; those that are, are one micro-batch."""
    shard, expert, context = ({"pipeline": 2, axis: 2} for axis in ("shard", "expert", "context"))
    keys = {name: {"pipeline_schedule": name} for name in ("gpipe", "1f1b", "interleaved", "zero-bubble", "zbv")}
    sharded = {
        "gpipe": "sparse", "1f1b": "ahead", "interleaved": "experts", "zero-bubble": "biases", "zbv": "full",
    }  # fmt: skip
    shared = {
        "gpipe": "lsh", "1f1b": "biased experts", "interleaved": "mixed", "zero-bubble": "linear", "zbv": "sparse",
    }  # fmt: skip
    all_rows = {"micro_batch_tokens": ROWS * CONTEXT}
    return [
        Case("FSDP × PP, 1f1b", shard, "full", "muon", keys["1f1b"]),
        *(Case(f"FSDP × PP, {name}", shard, network, "adamw", keys[name]) for name, network in sharded.items()),
        Case("FSDP × PP, 1f1b", shard, "reversible", "adamw", keys["1f1b"]),
        *(Case(f"EP × PP, {name}", expert, "free experts", "adamw", keys[name]) for name in keys),
        Case("EP × PP, 1f1b", expert, "experts", "muon", keys["1f1b"], all_rows),
        Case("EP × PP, zbv", expert, "biased experts", "adamw", keys["zbv"], all_rows),
        Case("CP × PP, 1f1b", context, "full", "muon", keys["1f1b"]),
        *(Case(f"CP × PP, {name}", context, network, "adamw", keys[name]) for name, network in shared.items()),
        Case("CP × PP, 1f1b", context, "reversible", "adamw", keys["1f1b"]),
    ]


def cases_of_eight() -> list[Case]:
    """Three axes of two processes each, and the longest of one."""

    def axes(*names: str) -> dict[str, int]:
        return dict.fromkeys(names, 2)

    zero = {"pipeline_schedule": "zero-bubble"}
    return [
        Case("DP × TP × PP", axes("data", "tensor", "pipeline"), "full", "muon"),
        Case("DP × TP × PP, zero-bubble", axes("data", "tensor", "pipeline"), "biases", "adamw", zero),
        Case("FSDP × TP × PP", axes("shard", "tensor", "pipeline"), "grouped", "muon"),
        Case("HSDP × PP", axes("data", "shard", "pipeline"), "experts"),
        Case("HSDP × TP", axes("data", "shard", "tensor"), "mixed", "muon"),
        Case("EP × TP × PP", axes("expert", "tensor", "pipeline"), "free experts"),
        Case("FSDP × EP × PP", axes("shard", "expert", "pipeline"), "free experts"),
        Case("CP × TP × PP", axes("context", "tensor", "pipeline"), "linear"),
        Case("FSDP × CP × PP", axes("shard", "context", "pipeline"), "sparse"),
        Case("DP × CP × TP", axes("data", "context", "tensor"), "full", "muon"),
        Case("DP", {"data": 8}, "experts", train={"micro_batch_tokens": 2 * CONTEXT}),
        Case("FSDP", {"shard": 8}, "full", "muon"),
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
        *(Case("EP × TP", two | {"tensor": 2}, "experts with biases", o, train=all_rows) for o in ("adamw", "muon")),
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
        *(Case(f"CP, {LONG} tokens", two, network, rows=1, context=LONG) for network in LONG_NETWORKS),
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
    *(Case("FSDP × TP", FSDP_TP, network) for network in ("full", "ahead", "biases", "experts with biases")),
    Case("TP + SP", TP, "experts with biases"),
    *(Case("DP × TP", DP_TP, network, "muon") for network in ("full", "sparse")),
    *pipeline_cases(),
    *pipeline_with_others(),
    *expert_cases(),
    *context_cases(),
    *cases_of_eight(),
]

CHANGES = [
    Case(name, sizes, "experts", "muon")
    for name, sizes in (("DP", DP), ("FSDP", FSDP), ("HSDP", HSDP), ("TP + SP", TP), ("FSDP × TP", FSDP_TP))
]
CHANGES_OF_STAGES = [
    Case(name, sizes, "free experts", "muon", {"pipeline_schedule": schedule} if "pipeline" in sizes else {})
    for name, sizes, schedule in (
        ("DP", DP, ""),
        ("PP", {"pipeline": 4}, "1f1b"),
        ("FSDP × PP", {"shard": 2, "pipeline": 2}, "zbv"),
        ("EP × PP", {"expert": 2, "pipeline": 2}, "1f1b"),
        ("CP × PP", {"context": 2, "pipeline": 2}, "interleaved"),
        ("TP × PP", {"tensor": 2, "pipeline": 2}, "zero-bubble"),
    )
]
