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
    where `rope_scaling` stretches it to `context`, or by `rope_factor`. `layer_shapes` describes each layer by itself
    where they differ; empty: all are as heads, kv_heads, d_ff and experts say. The width of a head is `head_dim`, by
    default d_model / heads, in either case.

    Parts that published families differ in (`formats.families` has them by name):

        rotary_fraction        of a head's channels, the first ones, that RoPE turns
        rope_low, rope_high    turns within the trained context between which scaling "llama3" sets in gradually
        rope_local_base        RoPE of window layers, which is then not scaled; 0: as everywhere
        rope_divisors          what each pair's θ is divided by (E/2 of them; none: 1), of longrope's measured kind
        rope_magnitude         length of the rotations, which scales queries and keys
        parallel_residual      x + Attention(Norm(x)) + FF(Norm'(x)); one norm for both is two that are equal
        norm_placement         pre: of what enters a branch; post: of what a branch adds; both
        norm_offset            added to the gain of every norm; published weights of some are small numbers around 0
        embedding_scale        times the embedding of tokens
        attention_scale        of scores; 0: 1/sqrt(E)
        qk_norm, qk_norm_full  a norm of queries and keys: of each head; of all heads together
        qkv_biases, out_biases, norm_biases     None: as `biases`, which those of the feed-forward part follow

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
    qk_norm_full: bool = False
    qkv_biases: bool | None = None
    out_biases: bool | None = None
    norm_biases: bool | None = None
    norm_placement: str = "pre"
    norm_offset: float = 0.0
    parallel_residual: bool = False
    head_dim: int = 0
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
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
    rope_factor: float = 0.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_local_base: float = 0.0
    rope_divisors: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    rotary_fraction: float = 1.0
    z_loss: float = 0.0
    ahead: int = 0
    experts: int = 0
    experts_active: int = 2
    experts_shared: int = 0
    balance: str = "bias"
    image_size: int = 0
    image_patch: int = 0
    image_channels: int = 3
    image_stem: str = "linear"
    norm_eps: float | None = None
    layer_shapes: tuple[LayerShape, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "attention", (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        )
        object.__setattr__(self, "rope_divisors", tuple(self.rope_divisors))
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
            (self.head_dim < 0, f"head_dim: {self.head_dim}; give channels of a head, or 0 for d_model / heads"),
            (
                not self.head_dim and self.d_model % self.heads != 0,
                f"heads: {self.heads} heads do not divide d_model {self.d_model}; give model.head_dim",
            ),
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
            (
                bool(self.attention_scale) and "linear" in used,
                "attention_scale: linear attention has no scores to scale; leave it out",
            ),
            (self.attention_scale < 0, f"attention_scale: {self.attention_scale}; give more than 0"),
            (self.qk_norm and self.qk_norm_full, "qk_norm_full: norms of each head (qk_norm), or of all; give one"),
        ]
        return [words for wrong, words in checks if wrong]

    def _problems_of_positions(self) -> list[str]:
        scaled, width = self.rope_scaling != "none", self.head_width
        checks = [
            (
                self.positions == "rope" and self.rotary_width % 2 != 0,
                f"heads: rope needs an even head width; d_model/heads (or head_dim) is {width}, of which "
                f"{self.rotary_width} channels turn",
            ),
            (
                not 0 < self.rotary_fraction <= 1,
                f"rotary_fraction: {self.rotary_fraction}; give a share above 0 and up to 1",
            ),
            (scaled and self.positions != "rope", f"rope_scaling: positions are '{self.positions}', not rope"),
            (
                scaled and not self.rope_factor and not 0 < self.rope_trained <= self.context,
                f"rope_trained: {self.rope_trained} with a context of {self.context}; give the (smaller) context that "
                "RoPE was trained at",
            ),
            (
                self.rope_scaling in ("yarn", "llama3") and self.rope_trained < 1,
                f"rope_trained: {self.rope_scaling} needs the context that RoPE was trained at",
            ),
            (
                self.rope_scaling == "llama3" and not 0 < self.rope_low < self.rope_high,
                f"rope_high: {self.rope_high} is not above rope_low {self.rope_low}",
            ),
            (
                not scaled and 0 < self.rope_trained < self.context,
                f"context: {self.context} tokens are beyond the {self.rope_trained} that RoPE was trained at; set "
                "model.rope_scaling",
            ),
            (
                bool(self.rope_divisors) and 2 * len(self.rope_divisors) != self.rotary_width,
                f"rope_divisors: {len(self.rope_divisors)} of them for {self.rotary_width // 2} pairs; give one for "
                "each",
            ),
        ]
        return [words for wrong, words in checks if wrong]

    def _problems_of_parts(self) -> list[str]:
        checks = [
            (
                self.norm_placement not in ("pre", "post", "both"),
                f"norm_placement: {self.norm_placement!r}; there are pre, post and both",
            ),
            (
                self.parallel_residual and self.residual == "reversible",
                "residual: reversible blocks feed one branch with the other's result, parallel ones do not; give "
                "residual = 'plain' or parallel_residual = false",
            ),
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
                and self.image_stem == "convolutions"
                and (self.image_patch < 2 or self.image_patch.bit_count() > 1),
                f"image_patch: {self.image_patch}; convolutions (image_stem) halve an image, so give a power of two",
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
        """E: `head_dim`, or D/H."""
        return self.head_dim or self.d_model // self.heads

    @property
    def rotary_width(self) -> int:
        """Channels of a head that RoPE turns."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def rope_stretch(self) -> float:
        """How many times longer than those of RoPE's training texts are: `rope_factor`, or context / rope_trained."""
        return self.rope_factor or self.context / max(1, self.rope_trained)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part multiplies its activation with a second product."""
        return self.activation in ("swiglu", "geglu")

    @property
    def has_qkv_biases(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.biases if self.qkv_biases is None else self.qkv_biases

    @property
    def has_out_biases(self) -> bool:
        """Whether attention's output matrix has a bias."""
        return self.biases if self.out_biases is None else self.out_biases

    @property
    def has_norm_biases(self) -> bool:
        """Whether norms, if they are LayerNorms, have biases."""
        return self.biases if self.norm_biases is None else self.norm_biases

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
