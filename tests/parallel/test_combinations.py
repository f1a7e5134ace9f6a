"""Impossible layouts are refused with all reasons (those of a training: test_mesh_layout.py)."""

from __future__ import annotations

import pytest

from lmforge.model.config import GPTConfig
from lmforge.parallel.combinations import impossible

SHAPE = {"vocab_size": 40, "context": 16, "layers": 2, "d_model": 32, "heads": 4, "kv_heads": 2, "d_ff": 64}


def reasons(sizes: dict[str, int], **network: object) -> str:
    axes = dict.fromkeys(("data", "shard", "tensor", "pipeline", "expert", "context"), 1) | sizes
    return "; ".join(impossible(axes, GPTConfig(**(SHAPE | network))))


@pytest.mark.parametrize(
    ("sizes", "network", "reason"),
    [
        ({"tensor": 4}, {}, "tensor 4: model.kv_heads 2 are fewer than the processes that share them; use at most 2"),
        ({"tensor": 2}, {"qk_norm_full": True}, "tensor 2: model.qk_norm_full normalises all heads together"),
        ({"tensor": 2}, {"image_size": 4, "image_patch": 2}, "tensor 2: patches of images"),
        ({"expert": 2}, {}, "expert 2: the network has no experts"),
        ({"expert": 3}, {"experts": 4, "d_ff": 64}, "expert 3: 4 experts of a layer do not divide over it"),
        ({"pipeline": 3}, {}, "pipeline 3: 2 layers are fewer than its processes"),
    ],
)
def test_each_reason_names_its_axis(sizes: dict[str, int], network: dict[str, object], reason: str) -> None:
    assert reason in reasons(sizes, **network)


def test_all_reasons_come_at_once_and_none_where_all_is_well() -> None:
    several = reasons({"tensor": 4, "pipeline": 3, "expert": 2}, qk_norm_full=True)
    assert several.count(";") >= 3
    assert not reasons({"tensor": 2, "data": 2, "pipeline": 2})
    assert not reasons(dict.fromkeys(("shard", "expert", "context", "tensor", "pipeline"), 2), experts=2, biases=True)
    assert not reasons({"tensor": 2, "shard": 4, "data": 2})
