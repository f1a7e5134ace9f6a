"""An ONNX graph written node by node, with its weights in a file beside it.

    graph = Graph()
    x = graph.op("Relu", "input")              the name of what comes out
    x = graph.op("Gemm", x, graph.weight("w", tensor), transB=1)
    graph.write(path, [("input", FLOAT, ("batch", 8))], [(x, FLOAT, ("batch", 4))])

Nothing is traced and nothing is run: a network of thirty layers takes as long as its weights take to be written, one
tensor's memory beside them (onnx.ai/onnx, IR specification, "External Tensor Data").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmforge.formats.export_tensors import LazyTensor

OPSET, IR_VERSION = 20, 9  # of 2023: runtimes of the years since know them
ALIGNED = 4096  # bytes: tensors that begin at whole pages can be mapped instead of read
FLOAT, DOUBLE, INT64 = 1, 11, 7  # onnx.TensorProto's numbers of types
Value = tuple[str, int, Sequence[str | int]]  # name, type, shape


class Graph:
    """Nodes in the order in which they are computed, constants, weights."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._known: dict[Any, list[str]] = {}
        self._constants: dict[Any, tuple[str, np.ndarray[Any, Any]]] = {}
        self._weights: dict[str, LazyTensor] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output, which is called `name`; the name of the output."""
        return self.ops(kind, 1, *inputs, names=None if name is None else [name], **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: str, names: Sequence[str] | None = None, **attributes: Any
    ) -> list[str]:
        """A node with several outputs; their names. What has been computed from the same inputs is not computed again,
        unless its outputs have names of their own."""
        from onnx import helper

        key = (kind, inputs, outputs, repr(sorted(attributes.items())))
        if names is None and key in self._known:
            return self._known[key]
        node = f"{kind}_{len(self._nodes)}"
        own = list(names or (f"{node}_{number}" for number in range(outputs)))
        self._nodes.append(helper.make_node(kind, list(inputs), own, name=node, **attributes))
        if names is None:
            self._known[key] = own
        return own

    def ints(self, *values: int) -> str:
        """A list of whole numbers (N)."""
        return self.constant(np.array(values, dtype=np.int64))

    def whole(self, value: int) -> str:
        """A whole number."""
        return self.constant(np.array(value, dtype=np.int64))

    def number(self, value: float) -> str:
        """A number in single precision."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """Numbers that stand in the graph itself; equal ones stand there once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        name, _ = self._constants.setdefault(key, (f"constant_{len(self._constants)}", value))
        return name

    def weight(
        self, name: str, tensor: LazyTensor, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> str:
        """A weight in single precision, in the file beside the graph, once for each name; `change` is done to it when
        it is written."""
        if name not in self._weights:
            single = tensor if tensor.dtype == torch.float32 else tensor.then(Tensor.float)
            self._weights[name] = single if change is None else single.then(change)
        return name

    @torch.no_grad()
    def write(self, path: Path, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """Write `path`, and the weights to `path` with .data behind its name."""
        from onnx import TensorProto, helper, numpy_helper, save

        data = path.with_name(f"{path.name}.data")
        initializers = [numpy_helper.from_array(value, name) for name, value in self._constants.values()]
        with data.open("wb") as file:
            for name, tensor in self._weights.items():
                begin = -(-file.tell() // ALIGNED) * ALIGNED
                file.write(b"\0" * (begin - file.tell()))
                made = tensor.make().detach().cpu().contiguous()
                file.write(made.reshape(-1).view(torch.uint8).numpy().data)
                proto = TensorProto(name=name, data_type=FLOAT, dims=made.shape, data_location=TensorProto.EXTERNAL)
                for key, value in (("location", data.name), ("offset", begin), ("length", made.nbytes)):
                    proto.external_data.add(key=key, value=str(value))
                initializers.append(proto)
                del made
        entering, leaving = (
            [helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)
        )
        model = helper.make_model(
            helper.make_graph(self._nodes, "lmforge", entering, leaving, initializer=initializers),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lmforge",
        )
        save(model, path)
