"""Every network that an ONNX decoder can say, as nodes of a graph; the same as `modeling_layers` computes.

    input_ids ─▶ embedding (N,D) ─▶ blocks: norm ─ attention over past and present keys ─ norm ─ feed-forward ─▶ logits

Shapes: B rows, T tokens, S keys with those of the past, N = B·T, H heads of width E, D width. Linear layers take their
matrices (outputs, inputs) as they are (Gemm with transB), so that a tied one stands in the file once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.formats.export_tensors import LazyTensor
from lmforge.formats.modeling_layers import CHOICE_SCALE, EXPERT_SCALE, ROUTER_SCALE, Shape, frequencies
from lmforge.formats.onnx_graph import DOUBLE, FLOAT, INT64, Graph, Value

TOKENS, MASK, LOGITS = "input_ids", "attention_mask", "logits"


class Decoder:
    """The graph of one network. `architecture` as config.json holds it, `tensors` by our names."""

    def __init__(self, architecture: dict[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
        self.shape, self.tensors = Shape(architecture), tensors
        self.graph = Graph()
        self.place = Place(self.graph, self.shape)

    def write(self, path: Path) -> None:
        """Put all nodes together and write them."""
        inputs, outputs = self._ends()
        graph, shape = self.graph, self.shape
        x = graph.op("Gather", self.weight("embed.weight"), TOKENS)
        if shape.embedding_scale != 1:
            x = graph.op("Mul", x, graph.number(shape.embedding_scale))
        if shape.positions == "learned":
            x = graph.op("Add", x, graph.op("Gather", self.weight("learned_positions.weight"), self.place.q_at))
        x = graph.op("Reshape", x, graph.ints(-1, shape.d_model))
        second = x if shape.residual == "reversible" else None
        for layer in range(shape.layers):
            x, second = self.block(layer, x, second)
        if second is not None:
            x = graph.op("Mul", graph.op("Add", x, second), graph.number(0.5))
        logits = self.linear("embed" if shape.tied else "head", self.norm("norm", x))
        graph.op("Reshape", logits, self.place.sizes(shape.vocab_size), name=LOGITS)
        graph.write(path, inputs, outputs)

    def _ends(self) -> tuple[list[Value], list[Value]]:
        """What goes in and what comes out, by the names that Optimum gives them."""
        inputs: list[Value] = [(TOKENS, INT64, ("batch", "sequence")), (MASK, INT64, ("batch", "past_and_sequence"))]
        outputs: list[Value] = [(LOGITS, FLOAT, ("batch", "sequence", self.shape.vocab_size))]
        for layer in range(self.shape.layers):
            heads = self.shape.layer(layer)["kv_heads"]
            for part in ("key", "value"):
                for name, length, ends in (
                    (f"past_key_values.{layer}.{part}", "past", inputs),
                    (f"present.{layer}.{part}", "past_and_sequence", outputs),
                ):
                    ends.append((name, FLOAT, ("batch", heads, length, self.shape.head_width)))
        return inputs, outputs

    def weight(self, name: str) -> str:
        """A tensor of the network."""
        return self.graph.weight(name, self.tensors[name])

    def linear(self, name: str, x: str) -> str:
        """x (N,I) → (N,O): one matrix, or two thin ones."""
        if f"{name}.weight" not in self.tensors:
            return self.linear(f"{name}.1", self.linear(f"{name}.0", x))
        bias = [self.weight(f"{name}.bias")] if f"{name}.bias" in self.tensors else []
        return self.graph.op("Gemm", x, self.weight(f"{name}.weight"), *bias, transB=1)

    def norm(self, name: str, x: str) -> str:
        """LayerNorm or RMSNorm over the last axis; none where there is none."""
        if f"{name}.weight" not in self.tensors:
            return x
        graph, offset = self.graph, self.shape.norm_offset
        eps = self.shape.norm_eps or (1e-5 if self.shape.norm == "layernorm" else 1e-6)
        gain = graph.weight(f"{name}.weight", self.tensors[f"{name}.weight"], lambda gain: gain + offset)
        if self.shape.norm == "layernorm":
            bias = [self.weight(f"{name}.bias")] if f"{name}.bias" in self.tensors else []
            return graph.op("LayerNormalization", x, gain, *bias, axis=-1, epsilon=eps)
        mean = graph.op("ReduceMean", graph.op("Pow", x, graph.number(2)), graph.ints(-1))
        root = graph.op("Sqrt", graph.op("Add", mean, graph.number(eps)))
        return graph.op("Mul", graph.op("Div", x, root), gain)

    def block(self, layer: int, x: str, second: str | None) -> tuple[str, str | None]:
        """One stream, or with `second` the two of reversible blocks (B·T,D)."""
        graph, name, entering = self.graph, f"blocks.{layer}", x
        read = x if second is None else second
        y = self.attention(layer, f"{name}.attention", self.norm(f"{name}.attention_norm", read))
        x = graph.op("Add", x, self.norm(f"{name}.attention_out_norm", y))
        widths = self.shape.layer(layer)
        if not widths["d_ff"]:
            return x, second
        read = self.norm(f"{name}.ff_norm", entering if self.shape.parallel_residual else x)
        y = self.experts(f"{name}.ff", read) if widths.get("experts") else self.feed_forward(f"{name}.ff", read)
        y = self.norm(f"{name}.ff_out_norm", y)
        return (graph.op("Add", x, y), None) if second is None else (x, graph.op("Add", second, y))

    def attention(self, layer: int, name: str, x: str) -> str:
        """(N,D) → (N,D), over the keys of the past and these."""
        graph, shape, widths, kind = self.graph, self.shape, self.shape.layer(layer), self.shape.kind(layer)
        heads, kv_heads, width = widths["heads"], widths["kv_heads"], shape.head_width
        together = graph.op("Reshape", self.linear(f"{name}.qkv", x), self.place.sizes(heads + 2 * kv_heads, width))
        q, k, v = graph.ops("Split", 3, together, graph.ints(heads, kv_heads, kv_heads), axis=2)
        q, k = self.normed(f"{name}.q_norm", q), self.normed(f"{name}.k_norm", k)
        q, k, v = (graph.op("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, k, v))
        q, k = self.place.rotated(q, kind), self.place.rotated(k, kind)
        k, v = (
            graph.op("Concat", f"past_key_values.{layer}.{part}", own, axis=2, name=f"present.{layer}.{part}")
            for part, own in (("key", k), ("value", v))
        )
        # heads that share keys and values stand side by side: their queries are more rows of one product
        q = graph.op("Mul", q, graph.number(shape.attention_scale or 1 / math.sqrt(width)))
        q = graph.op("Reshape", q, graph.ints(0, kv_heads, -1, width))
        scores = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = graph.op("Reshape", scores, self.place.score_sizes(heads))
        weights = graph.op("Softmax", graph.op("Add", scores, self.place.hidden(kind)), axis=-1)
        weights = graph.op("Reshape", weights, self.place.grouped_sizes(kv_heads))
        y = graph.op("Reshape", graph.op("MatMul", weights, v), self.place.head_sizes(heads))
        y = graph.op("Reshape", graph.op("Transpose", y, perm=[0, 2, 1, 3]), graph.ints(-1, heads * width))
        return self.linear(f"{name}.out", y)

    def normed(self, name: str, x: str) -> str:
        """Queries or keys (B,T,H,E), each head by itself or all together."""
        if not self.shape.qk_norm_full:
            return self.norm(name, x)
        whole = self.norm(name, self.graph.op("Reshape", x, self.graph.ints(0, 0, -1)))
        return self.graph.op("Reshape", whole, self.graph.ints(0, 0, -1, self.shape.head_width))

    def feed_forward(self, name: str, x: str) -> str:
        """act(x W1) W2; with swiglu and geglu, gate and input side by side."""
        graph, activation = self.graph, self.shape.activation
        hidden = self.linear(f"{name}.up", x)
        if activation in ("swiglu", "geglu"):
            gate, hidden = graph.ops("Split", 2, hidden, axis=-1, num_outputs=2)
            if activation == "swiglu":
                gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
            else:
                gate = graph.op("Gelu", gate, approximate="tanh")
            hidden = graph.op("Mul", gate, hidden)
        elif activation.startswith("relu"):
            hidden = graph.op("Relu", hidden)
            hidden = graph.op("Mul", hidden, hidden) if activation == "relu2" else hidden
        else:
            hidden = graph.op("Gelu", hidden, approximate="tanh" if activation == "gelu_tanh" else "none")
        return self.linear(f"{name}.down", hidden)

    def experts(self, name: str, x: str) -> str:
        """Each token through the few networks that a router picks: all of them, most times 0."""
        graph, shape, active = self.graph, self.shape, self.shape.experts_active
        logits = self.linear(f"{name}.router", x)
        logits = graph.op("Mul", logits, graph.number(ROUTER_SCALE / math.sqrt(shape.d_model)))
        biased = logits
        if f"{name}.choice_bias" in self.tensors:
            bias = graph.op("Mul", self.weight(f"{name}.choice_bias"), graph.number(CHOICE_SCALE))
            biased = graph.op("Add", logits, bias)
        _, chosen = graph.ops("TopK", 2, biased, graph.ints(active), axis=-1)
        weights = graph.op("GatherElements", graph.op("Softmax", logits, axis=-1), chosen, axis=-1)
        total = graph.op("ReduceSum", weights, graph.ints(-1))
        weights = graph.op("Div", graph.op("Mul", weights, graph.number(EXPERT_SCALE * active)), total)
        nothing = graph.op("Mul", logits, graph.number(0))
        shares = graph.op("ScatterElements", nothing, chosen, weights, axis=-1)
        y = self.feed_forward(f"{name}.shared", x) if f"{name}.shared.up.weight" in self.tensors else None
        number = 0
        while f"{name}.experts.{number}.down.weight" in self.tensors or f"{name}.experts.{number}.down.0.weight" in (
            self.tensors
        ):
            share = graph.op("Slice", shares, graph.ints(number), graph.ints(number + 1), graph.ints(-1))
            own = graph.op("Mul", share, self.feed_forward(f"{name}.experts.{number}", x))
            y, number = own if y is None else graph.op("Add", y, own), number + 1
        assert y is not None
        return y


class Place:
    """Where the tokens of a pass stand, which is the same for all layers: they share the nodes (`Graph.ops`)."""

    def __init__(self, graph: Graph, shape: Shape) -> None:
        self.graph, self.shape = graph, shape

    @property
    def rows(self) -> str:
        """[B]."""
        return self.graph.op("Shape", TOKENS, start=0, end=1)

    @property
    def length(self) -> str:
        """[T]."""
        return self.graph.op("Shape", TOKENS, start=1, end=2)

    @property
    def keys(self) -> str:
        """[S]."""
        return self.graph.op("Shape", MASK, start=1, end=2)

    def sizes(self, *inner: int) -> str:
        """[B, T, …]."""
        return self.graph.op("Concat", self.rows, self.length, self.graph.ints(*inner), axis=0)

    def score_sizes(self, heads: int) -> str:
        """[B, H, T, S]."""
        return self.graph.op("Concat", self.rows, self.graph.ints(heads), self.length, self.keys, axis=0)

    def grouped_sizes(self, kv_heads: int) -> str:
        """[B, kv_heads, H/kv_heads·T, S]."""
        return self.graph.op("Concat", self.rows, self.graph.ints(kv_heads, -1), self.keys, axis=0)

    def head_sizes(self, heads: int) -> str:
        """[B, H, T, E]."""
        width = self.graph.ints(self.shape.head_width)
        return self.graph.op("Concat", self.rows, self.graph.ints(heads), self.length, width, axis=0)

    @property
    def k_at(self) -> str:
        """Where each key stands in its text, not counting padding (B,S)."""
        counted = self.graph.op("CumSum", MASK, self.graph.whole(1))
        return self.graph.op("Max", self.graph.op("Sub", counted, self.graph.whole(1)), self.graph.whole(0))

    @property
    def before(self) -> str:
        """[S − T]: keys of the past."""
        return self.graph.op("Sub", self.keys, self.length)

    @property
    def q_at(self) -> str:
        """Where each token stands in its text (B,T)."""
        return self.graph.op("Slice", self.k_at, self.before, self.keys, self.graph.ints(1))

    @property
    def seen(self) -> str:
        """What is no padding and not later (B,1,T,S); padding sees itself, so that no row of scores is empty."""
        graph, one = self.graph, self.graph.whole(1)
        begin, end = (graph.op("Squeeze", each) for each in (self.before, self.keys))
        index = graph.op("Range", graph.whole(0), end, one)
        query = graph.op("Unsqueeze", graph.op("Range", begin, end, one), graph.ints(1))
        real = graph.op("Unsqueeze", graph.op("Greater", MASK, graph.whole(0)), graph.ints(1, 2))
        seen = graph.op("And", graph.op("GreaterOrEqual", query, index), real)
        return graph.op("Or", seen, graph.op("Equal", query, index))

    def hidden(self, kind: str) -> str:
        """What is added to scores in layers of a kind (B,1,T,S): 0 where a key is seen, −∞ where not."""
        graph, seen = self.graph, self.seen
        if kind != "full":
            q_at = graph.op("Unsqueeze", self.q_at, graph.ints(1, 3))
            k_at = graph.op("Unsqueeze", self.k_at, graph.ints(1, 2))
            near = graph.op("Less", graph.op("Sub", q_at, k_at), graph.whole(self.shape.window))
            if kind == "strided":
                rest = graph.op("Mod", k_at, graph.whole(self.shape.stride))
                near = graph.op("Or", near, graph.op("Equal", rest, graph.whole(0)))
            seen = graph.op("And", seen, near)
        return graph.op("Where", seen, graph.number(0), graph.number(-math.inf))

    def rotated(self, x: str, kind: str) -> str:
        """x (B,H,T,E), neighbouring pairs turned by their token's place."""
        if self.shape.positions != "rope":
            return x
        graph, half = self.graph, self.shape.head_width // 2
        cos, sin = self._turns(bool(self.shape.rope_local_base) and kind == "window")
        pairs = graph.op("Reshape", x, graph.ints(0, 0, 0, half, 2))
        even, odd = graph.ops("Split", 2, pairs, axis=4, num_outputs=2)
        first = graph.op("Sub", graph.op("Mul", even, cos), graph.op("Mul", odd, sin))
        second = graph.op("Add", graph.op("Mul", even, sin), graph.op("Mul", odd, cos))
        turned = graph.op("Concat", first, second, axis=4)
        return graph.op("Reshape", turned, graph.ints(0, 0, 0, 2 * half))

    def _turns(self, local: bool) -> tuple[str, str]:
        """Cosines and sines (B,1,T,E/2,1), reckoned in double precision; pairs that stand still have an angle of 0."""
        graph = self.graph
        theta, size = frequencies(self.shape, local)
        half, turning = self.shape.head_width // 2, len(theta)
        angles, sizes = np.zeros(half), np.ones(half)
        angles[:turning], sizes[:turning] = theta.numpy(), size
        at = graph.op("Cast", graph.op("Unsqueeze", self.q_at, graph.ints(1, 3, 4)), to=DOUBLE)
        turned = graph.op("Mul", at, graph.constant(angles[:, None]))
        parts = [graph.op("Mul", graph.op(kind, turned), graph.constant(sizes[:, None])) for kind in ("Cos", "Sin")]
        cos, sin = (graph.op("Cast", part, to=FLOAT) for part in parts)
        return cos, sin
