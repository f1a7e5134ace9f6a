"""The shape of a network, checked."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from lmforge.errors import InputError
from lmforge.recipe import AttentionKind, Recipe

KINDS = get_args(AttentionKind)


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The widths of one layer, where the layers of a network differ.

    heads and kv_heads, each as wide as `GPTConfig.head_width`; heads 0: the layer has no attention. d_ff 0: it has no
    feed-forward part; experts share its d_ff (0: one feed-forward network). A rank above 0 puts two thin matrices in
    the place of one (`low_rank`); those of up and down hold for every expert.
    """

    heads: int
    kv_heads: int
    d_ff: int
    experts: int = 0
    qkv_rank: int = 0
    out_rank: int = 0
    up_rank: int = 0
    down_rank: int = 0


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a network; everything else follows from it.

    `attention` is a pattern of kinds repeated over the layers (`attention.py`); window, stride, pool, pooling,
    lsh_span, lsh_rounds and feature_map belong to kinds of it. `rope_trained` is the context that RoPE was trained at
    where `rope_scaling` stretches it to `context`. `layer_shapes` describes each layer by itself where they differ;
    empty: all are as heads, kv_heads, d_ff and experts say. The width of a head is d_model / heads in either case.

    Raises:
        InputError: values that do not fit together, as keys of the recipe.
    """

    vocab_size: int
    context: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    activation: str = "relu"
    norm: str = "rmsnorm"
    positions: str = "rope"
    biases: bool = False
    qk_norm: bool = False
    ngram_rows: int = 0
    attention: tuple[str, ...] = ("full",)
    window: int = 256
    stride: int = 1024
    pool: int = 128
    pooling: str = "mean"
    lsh_span: int = 64
    lsh_rounds: int = 4
    feature_map: str = "elu"
    tied: bool = True
    residual: str = "plain"
    recompute: bool = False
    rope_base: float = 10_000.0
    rope_scaling: str = "none"
    rope_trained: int = 0
    z_loss: float = 0.0
    ahead: int = 0
    experts: int = 0
    experts_active: int = 2
    experts_shared: int = 0
    balance: str = "bias"
    image_size: int = 0
    image_patch: int = 0
    image_channels: int = 3
    norm_eps: float | None = None
    layer_shapes: tuple[LayerShape, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "attention", (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        )
        shapes = (LayerShape(**shape) if isinstance(shape, dict) else shape for shape in self.layer_shapes)
        object.__setattr__(self, "layer_shapes", tuple(shapes))
        for problem in (
            *self._problems_of_attention(),
            *self._problems_of_positions(),
            *self._problems_of_parts(),
            *self._problems_of_layer_shapes(),
        ):
            raise InputError(f"model.{problem}")

    def _problems_of_attention(self) -> list[str]:
        """What does not fit together, worst first."""
        pattern, used = self.attention, set(self.attention)
        unknown = sorted(used - set(KINDS))
        pools, bands = bool(used & {"pooled", "sparse"}), bool(used & {"window", "strided", "sparse"})
        checks = [
            (
                bool(unknown) or not pattern,
                f"attention: {unknown} is not a kind of attention; there are {', '.join(KINDS)}",
            ),
            (
                bool(pattern) and self.layers % max(1, len(pattern)) != 0,
                f"attention: a pattern of {len(pattern)} kinds does not fit {self.layers} layers; give a number of "
                "kinds that divides them",
            ),
            (self.d_model % self.heads != 0, f"heads: {self.heads} heads do not divide d_model {self.d_model}"),
            (self.heads % self.kv_heads != 0, f"kv_heads: {self.kv_heads} do not divide heads {self.heads}"),
            (
                "lsh" in used and self.kv_heads != self.heads,
                "kv_heads: lsh uses queries as keys; give as many kv_heads as heads",
            ),
            (
                pools and self.pool > self.context,
                f"pool: a block of {self.pool} tokens is larger than the context of {self.context}; lower model.pool "
                "or raise tokens.context",
            ),
            (bands and self.window < 1, f"window: {self.window}; give at least 1"),
            (pools and self.pool < 1, f"pool: {self.pool}; give at least 1"),
            (bool(used & {"strided", "sparse"}) and self.stride < 1, f"stride: {self.stride}; give at least 1"),
        ]
        return [words for wrong, words in checks if wrong]

    def _problems_of_positions(self) -> list[str]:
        checks = [
            (
                self.positions == "rope" and self.d_model // self.heads % 2 != 0,
                f"heads: rope needs an even head width; d_model/heads is {self.d_model // self.heads}",
            ),
            (
                self.rope_scaling != "none" and self.positions != "rope",
                f"rope_scaling: positions are '{self.positions}', not rope",
            ),
            (
                self.rope_scaling != "none" and not 0 < self.rope_trained <= self.context,
                f"rope_trained: {self.rope_trained} with a context of {self.context}; give the (smaller) context that "
                "RoPE was trained at",
            ),
            (
                self.rope_scaling == "none" and 0 < self.rope_trained < self.context,
                f"context: {self.context} tokens are beyond the {self.rope_trained} that RoPE was trained at; set "
                "model.rope_scaling",
            ),
        ]
        return [words for wrong, words in checks if wrong]

    def _problems_of_parts(self) -> list[str]:
        checks = [
            (
                self.experts > 0 and self.d_ff % max(1, self.experts) != 0,
                f"experts: {self.experts} experts do not divide d_ff {self.d_ff}",
            ),
            (
                self.experts > 0 and not 0 < self.experts_active <= self.experts,
                f"experts_active: {self.experts_active} of {self.experts} experts; give 1 to {self.experts}",
            ),
            (
                bool(self.image_size) and (self.image_patch < 1 or self.image_size % max(1, self.image_patch) != 0),
                f"image_patch: patches of {self.image_patch} do not divide images of {self.image_size} pixels",
            ),
            (
                bool(self.image_size)
                and self.image_patch > 0
                and (self.image_size // self.image_patch) ** 2 >= self.context,
                f"image_size: an image is {(self.image_size // max(1, self.image_patch)) ** 2} patches, and the "
                f"context {self.context} tokens",
            ),
        ]
        return [words for wrong, words in checks if wrong]

    def _problems_of_layer_shapes(self) -> list[str]:
        if not self.layer_shapes:
            return []
        if len(self.layer_shapes) != self.layers:
            return [f"layer_shapes: {len(self.layer_shapes)} of them for {self.layers} layers; give one for each"]
        problems = []
        for layer, shape in enumerate(self.layer_shapes):
            checks = [
                (min(dataclasses.astuple(shape)) < 0, f"{shape} has a number below 0"),
                (
                    shape.heads > 0 and (shape.kv_heads < 1 or shape.heads % max(1, shape.kv_heads) != 0),
                    f"kv_heads {shape.kv_heads} do not divide heads {shape.heads}",
                ),
                (
                    self.kind_of(layer) == "lsh" and shape.heads != shape.kv_heads,
                    "lsh uses queries as keys; give as many kv_heads as heads",
                ),
                (
                    shape.experts > 0 and shape.d_ff % max(1, shape.experts) != 0,
                    f"{shape.experts} experts do not divide d_ff {shape.d_ff}",
                ),
                (
                    shape.experts > 0 and shape.d_ff > 0 and not 0 < self.experts_active <= shape.experts,
                    f"{self.experts_active} experts are active of {shape.experts}",
                ),
            ]
            problems += [f"layer_shapes: layer {layer}: {words}" for wrong, words in checks if wrong]
        return problems

    @property
    def head_width(self) -> int:
        """E = D/H."""
        return self.d_model // self.heads

    @property
    def positions_used(self) -> int:
        """Positions of a full context: a pooled key stands in the middle of its block, which may reach beyond."""
        return self.context + (self.pool if {"pooled", "sparse"} & set(self.attention) else 0)

    def kind_of(self, layer: int) -> str:
        """The kind of attention of a layer."""
        return self.attention[layer % len(self.attention)]

    def shape_of(self, layer: int) -> LayerShape:
        """The widths of a layer."""
        if self.layer_shapes:
            return self.layer_shapes[layer]
        return LayerShape(self.heads, self.kv_heads, self.d_ff, self.experts)

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(shape.experts and shape.d_ff for shape in self.layer_shapes) or bool(
            self.experts and not self.layer_shapes
        )

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `GPTConfig(**…)` takes back."""
        return dataclasses.asdict(self)


def network_of(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The network that a recipe's [model] and a vocabulary make.

    Raises:
        InputError: values that do not fit together.
    """
    m = recipe.model
    shape = {name: value for name, value in m.model_dump(exclude={"base"}).items() if value is not None}
    derived = {
        "kv_heads": m.kv_heads or m.heads,
        "d_ff": m.d_ff or 4 * m.d_model,
        "vocab_size": vocab_size,
        "context": recipe.tokens.context,
        "z_loss": recipe.train.z_loss,
    }
    return GPTConfig(**(shape | derived))
