"""onnxruntime runs the decoder with its cache, any number of rows and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.export import export
from lmforge.formats.load import load_any
from tests.formats.exporting import small

for package in ("transformers", "onnx", "onnxruntime"):
    pytest.importorskip(package)
from lmforge.formats.onnx import Session  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "experts, windows": {"experts": 4, "attention": ("full", "window"), "window": 5, "kv_heads": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_rows_of_different_lengths_go_on_with_their_cache(tmp_path: Path, name: str) -> None:
    loaded = small(**CASES[name])
    report = export(loaded, tmp_path / "out", "onnx")
    assert report["logits_difference"] < 1e-4
    assert report["greedy_tokens_equal"] == 32
    session = Session(tmp_path / "out" / "model.onnx")
    rows = [list(range(3, 14)), list(range(100, 104))]
    padded = np.array([rows[0], [0] * 7 + rows[1]])
    mask = np.array([[1] * 11, [0] * 7 + [1] * 4])
    past, parts = session.empty(2), []
    for begin, end in ((0, 6), (6, 7), (7, 11)):
        logits, past = session.run(padded[:, begin:end], mask[:, :end], past)
        parts.append(logits)
    whole = np.concatenate(parts, 1)
    for row, result in zip(rows, whole, strict=True):
        with torch.no_grad():
            ours = loaded.model(torch.tensor([row]))[0].numpy()
        assert np.abs(result[-len(row) :] - ours).max() < 1e-4
    names = [each.name for each in session.session.get_inputs()]
    assert names[:4] == ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    assert session.session.get_inputs()[2].shape == ["batch", 2, "past", 8]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["model", "compressed"])
def test_a_run(tmp_path: Path, tiny_run: Path, which: Any) -> None:
    report = export(load_any(tiny_run, which), tmp_path / "out", "onnx")
    assert ("dequantised" in report) == (which == "compressed")
    assert report["logits_difference"] < 1e-3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention": ("full", "sparse"), "window": 8, "pool": 4}, "model.attention = 'sparse'"),
        ({"attention": ("linear",)}, "model.attention = 'linear'"),
        ({"ngram_rows": 40}, "model.ngram_rows = 40"),
        ({"image_size": 8, "image_patch": 4}, "model.image_size = 8"),
        (
            {"layer_shapes": ({"heads": 4, "kv_heads": 2, "d_ff": 8}, {"heads": 0, "kv_heads": 0, "d_ff": 8})},
            "model.layer_shapes",
        ),
    ],
)
def test_what_it_cannot_say_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        export(small(**changes), tmp_path / "out", "onnx")
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
