"""Graphs against the network: every kind that has keys and values, in rows of different lengths, with their cache."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmforge.formats import modeling_layers, onnx_network
from lmforge.formats.export_transformers import our_tensors
from lmforge.formats.modeling_layers import MASKABLE
from lmforge.model.config import GPTConfig
from tests.formats.exporting import small
from tests.formats.test_modeling_layers import SHAPES, TRAINING

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)
from lmforge.formats.onnx import Session, refusal  # noqa: E402

ASKED = {
    **{name: changes for name, changes in SHAPES.items() if refusal(small(**changes)) is None},
    "thin matrices": {
        "norm": "layernorm",
        "biases": True,
        "layer_shapes": (
            {"heads": 2, "kv_heads": 1, "d_ff": 0, "qkv_rank": 5, "out_rank": 3},
            {"heads": 4, "kv_heads": 4, "d_ff": 24, "up_rank": 4, "down_rank": 6},
        ),
    },
}
# of kinds that are refused, and what training alone uses
OTHERS = {"pool", "pooling", "lsh_span", "lsh_rounds", "feature_map", "ngram_rows"} | TRAINING - {"tied", "vocab_size"}


@torch.no_grad()
@pytest.mark.parametrize("name", ASKED)
def test_rows_of_different_lengths_go_on_as_in_the_network(tmp_path: Path, name: str) -> None:
    loaded = small(**ASKED[name])
    path = tmp_path / "model.onnx"
    onnx_network.Decoder(loaded.config.to_json(), our_tensors(loaded, loaded.config)).write(path)
    session = Session(path)
    rows = torch.randint(280, (2, 40), generator=torch.Generator().manual_seed(0))
    padded, mask = np.zeros((2, 47), np.int64), np.zeros((2, 47), np.int64)
    padded[0, 7:], mask[0, 7:], padded[1, :40], mask[1, :40] = rows[0], 1, rows[1], 1
    past, parts = session.empty(2), []
    for begin, end in ((0, 9), (9, 10), (10, 47)):
        logits, past = session.run(padded[:, begin:end], mask[:, :end], past)
        parts.append(torch.from_numpy(logits))
    whole = torch.cat(parts, 1)
    assert torch.allclose(torch.stack((whole[0, 7:], whole[1, :40])), loaded.model(rows), atol=5e-5)


def test_every_kind_with_keys_and_values_is_asked() -> None:
    tried = {kind for changes in ASKED.values() for kind in changes.get("attention", ("full",))}
    assert tried == MASKABLE


def test_every_field_of_the_shape_is_read_or_refused() -> None:
    """A field that is new in the network has to come here, too; what the modelling file's `Shape` and `frequencies`
    read counts."""
    words: set[str] = set()
    for module, parts in ((onnx_network, None), (modeling_layers, ("Shape", "frequencies"))):
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            if parts is None or getattr(node, "name", "") in parts:
                words |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
                words |= {str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)}
    tensors: set[Any] = {
        "biases",
        "experts_shared",
        "balance",
        "qk_norm",
        "norm_placement",
    }  # said by which tensors there are
    assert {field.name for field in dataclasses.fields(GPTConfig)} - words - OTHERS - tensors == set()
