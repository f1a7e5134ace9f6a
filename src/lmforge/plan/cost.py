"""What a network costs, as formulas per component: parameters and floating-point operations (bytes: `memory`). Nothing
is allocated, and layers may differ.

Shapes as in `gpt`: D width, H heads of width E, K = kv_heads·E the width of keys and of values, F feed-forward width, V
vocabulary, T tokens of a row. One multiplication with its addition counts as 2 operations (FLOPs). Norms, activations,
softmax and lookups are left out of the operations: together they are a per cent of them from D = 256 on.
"""

from __future__ import annotations

import dataclasses
import math

from lmforge.model import linear_attention
from lmforge.model.config import GPTConfig, LayerShape
from lmforge.model.kernels import banded
from lmforge.model.lsh import bucket_sides
from lmforge.model.softmax_attention import Softmax, saves_attention

TRAINING = 3  # times the forward pass: the backward pass makes two products (for inputs and for weights) of each one
# times, for attention by the library's kernel: its backward pass makes the scores again (Dao et al. 2022)
KERNEL_TRAINING = 3.5


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer as the formulas want it: W, the width of its queries; K, that of its keys and of its values."""

    kind: str
    shape: LayerShape
    queries: int
    keys: int
    usual: bool = True  # norms stand before its branches, which follow one another

    @property
    def projected(self) -> int:
        """The width of queries, keys and values side by side; LSH's queries are its keys."""
        return self.queries + (1 if self.kind == "lsh" else 2) * self.keys

    @property
    def whole(self) -> bool:
        """Whether it has both parts, as they usually are: only then do recomputed and reversible blocks go their fast
        ways (`recompute`)."""
        return self.usual and bool(self.shape.heads and self.shape.d_ff)


def layers_of(c: GPTConfig) -> list[Layer]:
    """The layers of a network, in order."""
    shapes = map(c.shape_of, range(c.layers))
    return [layer_of(c, c.kind_of(number), shape) for number, shape in enumerate(shapes)]


def layer_of(c: GPTConfig, kind: str, shape: LayerShape) -> Layer:
    """A layer of these widths."""
    usual = c.norm_placement == "pre" and not c.parallel_residual
    return Layer(kind, shape, shape.heads * c.head_width, shape.kv_heads * c.head_width, usual)


def _layer_ahead(c: GPTConfig) -> Layer:
    """The block of a token further ahead: the last layer's kind, none of its peculiarities."""
    return layer_of(c, c.kind_of(c.layers - 1), LayerShape(c.heads, c.kv_heads, c.d_ff))


def _matrix(inputs: int, outputs: int, rank: int) -> int:
    """Numbers of a matrix, or of two thin ones in its place; as many multiplications for a token."""
    return rank * (inputs + outputs) if rank else inputs * outputs


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by component; an embedding that is also the output matrix counts once. Their sum is the network's."""
    c, width, layers = config, config.d_model, layers_of(config)
    of_norm = width * (2 if c.has_norm_biases and c.norm == "layernorm" else 1)
    of_branch = 2 if c.norm_placement == "both" else 1
    block = _layer_ahead(c)
    ahead = c.ahead * (
        2 * width * width
        + (width if c.biases else 0)
        + _attention(c, block)
        + _feed_forward(c, block)
        + (2 + 2 * of_branch) * of_norm
        + _head_norms(c, block)
    )
    side = c.image_size // c.image_patch if c.image_size else 0
    norms = 1 + of_branch * sum((layer.shape.heads > 0) + (layer.shape.d_ff > 0) for layer in layers)
    return {
        "embedding": c.vocab_size * width,
        "output": 0 if c.tied else c.vocab_size * width,
        "ngrams": 2 * c.ngram_rows * width,
        "positions": c.context * width if c.positions == "learned" else 0,
        "patches": _patches(c, side) if side else 0,
        "attention": sum(_attention(c, layer) for layer in layers),
        "feed_forward": sum(_feed_forward(c, layer) for layer in layers),
        "norms": norms * of_norm + sum(_head_norms(c, layer) for layer in layers),
        "ahead": ahead,
    }


def _patches(c: GPTConfig, side: int) -> int:
    """Parameters of what makes vectors of patches (`model.vision`)."""
    places = 2 * side * c.d_model
    if c.image_stem == "linear":
        return places + c.d_model * (c.image_channels * c.image_patch**2 + 1)
    width, halvings = c.d_model // 2, c.image_patch.bit_length() - 1
    convolutions = 9 * width * (c.image_channels + (halvings - 1) * width) + 3 * halvings * width
    return places + convolutions + c.d_model * (width + 1)


def _attention(c: GPTConfig, layer: Layer) -> int:
    """Parameters of one layer's attention, norms left out."""
    shape = layer.shape
    if not shape.heads:
        return 0
    count = _projections(c, layer) + biases_of_attention(c, layer)
    if layer.kind in ("pooled", "sparse") and c.pooling == "conv":
        count += 2 * c.pool * layer.keys
    if layer.kind == "linear" and c.feature_map == "learned":
        count += (shape.heads + shape.kv_heads) * c.head_width**2
    return count


def _projections(c: GPTConfig, layer: Layer) -> int:
    """Numbers of the matrices before and after a layer's attention."""
    shape = layer.shape
    into = _matrix(c.d_model, layer.projected, shape.qkv_rank)
    return into + _matrix(layer.queries, c.d_model, shape.out_rank) if shape.heads else 0


def biases_of_attention(c: GPTConfig, layer: Layer) -> int:
    """Parameters of the biases of one layer's attention."""
    return (layer.projected if c.has_qkv_biases else 0) + (c.d_model if c.has_out_biases else 0)


def _head_norms(c: GPTConfig, layer: Layer) -> int:
    if not layer.shape.heads or not (c.qk_norm or c.qk_norm_full):
        return 0
    queries, keys = (layer.queries, layer.keys) if c.qk_norm_full else (c.head_width, c.head_width)
    return queries + (0 if layer.kind == "lsh" else keys)


def _units(c: GPTConfig, shape: LayerShape, units: int) -> int:
    """Numbers of the two matrices of a feed-forward network."""
    wide = units * (2 if c.gated else 1)
    return _matrix(c.d_model, wide, shape.up_rank) + _matrix(units, c.d_model, shape.down_rank)


def _expert(c: GPTConfig, shape: LayerShape, count: int = 1) -> int:
    """Parameters of one expert as wide as `count`."""
    units = shape.d_ff // shape.experts * count
    wide = units * (2 if c.gated else 1)
    return _units(c, shape, units) + (wide + c.d_model if c.biases else 0)


def _feed_forward(c: GPTConfig, layer: Layer) -> int:
    """Parameters of one layer's feed-forward part."""
    shape = layer.shape
    if not shape.d_ff:
        return 0
    if not shape.experts:
        return _expert(c, dataclasses.replace(shape, experts=1))
    shared = _expert(c, shape, c.experts_shared) if c.experts_shared else 0
    router = shape.experts * (c.d_model + (c.balance == "bias"))
    return shape.experts * _expert(c, shape) + shared + router


def active_parameters(config: GPTConfig) -> int:
    """Parameters that one token's prediction touches: all but the rows of tables that are not looked up, the experts
    that are not chosen, and what is used in training only."""
    c, counted = config, parameters(config)
    idle = counted["ngrams"] + counted["positions"] + counted["ahead"] + counted["patches"]
    if not c.tied:
        idle += counted["embedding"] - c.d_model
    shapes = [layer.shape for layer in layers_of(c)]
    idle += sum(
        (shape.experts - c.experts_active) * _expert(c, shape) for shape in shapes if shape.experts and shape.d_ff
    )
    rows = (2 if c.ngram_rows else 0) + (1 if c.positions == "learned" else 0)
    return sum(counted.values()) - idle + rows * c.d_model


def flops_per_token(config: GPTConfig, context: int) -> dict[str, float]:
    """Operations of the forward pass for a token of a row of `context` tokens, on average, by component.

    Attention is causal: in a full layer token t meets t + 1 keys, (T + 1)/2 on average, half of what a full T×T product
    would take. The other kinds count what their fast path computes, what their masks hide included. Training takes
    `training_flops_per_token`.
    """
    layers = layers_of(config)
    return _forward(config, layers, [_mixing(config, layer, context) / context for layer in layers])


def decode_flops_per_token(config: GPTConfig, cached: int) -> dict[str, float]:
    """Operations to predict one more token after `cached` tokens, with what the kinds of attention keep of them."""
    layers = layers_of(config)
    return _forward(config, layers, [_mixing_one(config, layer, cached + 1) for layer in layers])


def training_flops_per_token(config: GPTConfig, context: int) -> float:
    """Operations of forward and backward pass for a token of a row of `context` tokens, on average, with what is
    computed again."""
    c, forward, layers = config, flops_per_token(config, context), layers_of(config)
    kernel = sum(_mixing(c, layer, context) for layer in layers if layer.kind != "linear") / context
    hashes = sum(_hashing(c, layer) for layer in layers if layer.kind == "lsh")
    total = (
        TRAINING * sum(forward.values()) + (KERNEL_TRAINING - TRAINING) * (kernel - hashes) - (TRAINING - 1) * hashes
    )
    if c.recompute or c.residual == "reversible":
        total += sum(forward.values()) - forward["head"]
        total += sum(_beside_recomputing(c, layer, context) for layer in layers)
    total += sum(_made_again(c, layer, context) for layer in layers) / context
    if c.ahead:
        block = _layer_ahead(c)
        one = _forward(c, [block], [_mixing(c, block, context) / context])
        total += c.ahead * (
            TRAINING * (sum(one.values()) + 4.0 * c.d_model**2) + _made_again(c, block, context) / context
        )
    return total


def _beside_recomputing(c: GPTConfig, layer: Layer, context: int) -> float:
    """What recomputing a layer takes more, or less, than running it once again."""
    shape = layer.shape
    last = 2.0 * _matrix(shape.d_ff, c.d_model, 0) if not shape.down_rank else 2.0 * shape.down_rank * c.d_model
    reversible = c.residual == "reversible"
    if not layer.whole or (reversible and not all(each.whole for each in layers_of(c))):
        if c.norm_placement != "pre":  # the norm after the last product keeps what it gave
            return 0.0
        # called whole: all but the last product, of which nothing is kept
        if shape.d_ff:
            return -last if not shape.experts else 0.0
        return -2.0 * (shape.out_rank or layer.queries) * c.d_model if shape.heads else 0.0
    more = 0.0
    if c.recompute and saves_attention(c, layer.kind):  # what is kept of attention need not be made again
        more -= _mixing(c, layer, context) / context
    if not reversible and not shape.experts and not shape.down_rank:  # nor what the feed-forward part gave
        more -= last
    # thin matrices are run once more for their gradients, whole ones are not
    more += 2.0 * _matrix(c.d_model, layer.projected, shape.qkv_rank) if shape.qkv_rank else 0.0
    return more + (2.0 * _matrix(layer.queries, c.d_model, shape.out_rank) if shape.out_rank else 0.0)


def _forward(config: GPTConfig, layers: list[Layer], mixing: list[float]) -> dict[str, float]:
    """By component; `mixing` is what each layer's attention takes for a token, its projections left out."""
    c = config
    return {
        "projections": 2.0 * sum(_projections(c, layer) for layer in layers),
        "attention": sum(mixing),
        "feed_forward": 2.0 * sum(_fed(c, layer.shape) for layer in layers),
        "head": 2.0 * c.d_model * c.vocab_size,
    }


def _fed(c: GPTConfig, shape: LayerShape) -> int:
    """Multiplications of one token by a layer's feed-forward part."""
    if not shape.experts or not shape.d_ff:
        return _units(c, shape, shape.d_ff) if shape.d_ff else 0
    unit = shape.d_ff // shape.experts
    shared = _units(c, shape, unit * c.experts_shared) if c.experts_shared else 0
    return c.experts_active * _units(c, shape, unit) + shared + shape.experts * c.d_model


def _mixing(c: GPTConfig, layer: Layer, length: int) -> float:
    """Operations of one layer to mix a row of `length` tokens: Q·Kᵀ, then its softmax times V, over the pairs that
    meet."""
    if layer.kind == "linear":
        chunk = min(linear_attention.CHUNK, length)
        return math.ceil(length / chunk) * chunk * _linear(c, layer, chunk)
    if layer.kind == "lsh":
        pieces = math.ceil(length / c.lsh_span)
        return 4.0 * layer.queries * c.lsh_rounds * pieces * 2 * c.lsh_span**2 + length * _hashing(c, layer)
    rule = Softmax(c, layer.kind)
    if rule.window is None or length <= rule.window:
        return 4.0 * layer.queries * length * (length + 1) / 2
    return 4.0 * layer.queries * banded.pairs(length, rule.window, rule.layout(length)[0])


def _made_again(c: GPTConfig, layer: Layer, length: int) -> float:
    """Operations that the backward pass of linear attention adds to twice its forward pass: scores within chunks and
    their sums, once more."""
    if layer.kind != "linear":
        return 0.0
    features, chunk = c.head_width * (2 if c.feature_map == "learned" else 1), min(linear_attention.CHUNK, length)
    return math.ceil(length / chunk) * chunk * 2.0 * layer.shape.heads * features * (chunk + c.head_width + 1)


def _mixing_one(c: GPTConfig, layer: Layer, length: int) -> float:
    """The same for the last token of `length`, when decoding."""
    if layer.kind == "linear":
        return _linear(c, layer, 1)
    if layer.kind == "lsh":
        return 4.0 * layer.queries * c.lsh_rounds * c.lsh_span + _hashing(c, layer)
    rule = Softmax(c, layer.kind)
    if rule.window is None or length <= rule.window:
        return 4.0 * layer.queries * length
    return 4.0 * layer.queries * (rule.window + int((rule.layout(length)[0] < length).sum()))


def _linear(c: GPTConfig, layer: Layer, chunk: int) -> float:
    """Linear attention of one token in a chunk: scores, their product with values, the sums it adds to, the sums it
    reads."""
    features, values = c.head_width * (2 if c.feature_map == "learned" else 1), c.head_width + 1
    maps = 2.0 * (layer.shape.heads + layer.shape.kv_heads) * c.head_width**2 if c.feature_map == "learned" else 0.0
    return 2.0 * layer.shape.heads * (chunk * (features + values) + 2 * features * values) + maps


def _hashing(c: GPTConfig, layer: Layer) -> float:
    """The rotations of one token of one LSH layer."""
    return 2.0 * layer.queries * c.lsh_rounds * sum(side // 2 for side in bucket_sides(c))
