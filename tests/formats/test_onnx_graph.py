"""A graph of a few nodes: what it computes, what stands in it once, where its weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmforge.formats.export_tensors import LazyTensor

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)
from lmforge.formats.onnx_graph import ALIGNED, FLOAT, Graph  # noqa: E402


def test_what_is_written_computes_what_was_said(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    graph, path = Graph(), tmp_path / "model.onnx"
    matrix, gain = torch.randn(3, 4), torch.randn(3).to(torch.bfloat16)
    product = graph.op("Gemm", "x", graph.weight("w", LazyTensor.of(matrix)), transB=1)
    scaled = graph.op("Mul", product, graph.weight("gain", LazyTensor.of(gain), lambda each: each + 1))
    first, second = graph.ops("Split", 2, scaled, graph.ints(1, 2), axis=1)
    graph.op("Concat", second, first, axis=1, name="y")
    graph.write(path, [("x", FLOAT, ("rows", 4))], [("y", FLOAT, ("rows", 3))])
    onnx.checker.check_model(str(path))
    x = torch.randn(5, 4)
    (y,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    expected = (x @ matrix.t() * (gain.float() + 1)).roll(-1, 1)
    assert torch.allclose(torch.from_numpy(y), expected, atol=1e-5)
    weights = {each.name: each for each in onnx.load(str(path), load_external_data=False).graph.initializer}
    place = {each.key: each.value for each in weights["gain"].external_data}
    assert place["location"] == "model.onnx.data"
    assert int(place["offset"]) == ALIGNED  # the page after the matrix's
    assert (tmp_path / "model.onnx.data").stat().st_size == ALIGNED + gain.numel() * 4


def test_equal_nodes_and_constants_stand_once_unless_they_are_named() -> None:
    graph = Graph()
    assert graph.op("Relu", "x") == graph.op("Relu", "x")
    assert graph.op("Relu", "x", name="out") == "out"
    assert graph.op("Softmax", "x", axis=0) != graph.op("Softmax", "x", axis=1)
    assert graph.ints(1, 2) == graph.ints(1, 2)
    assert len({graph.ints(1), graph.whole(1), graph.number(1.0), graph.constant(np.array([1.0], np.float32))}) == 4
