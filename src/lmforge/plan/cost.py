"""What a network costs, as formulas per component: parameters, floating-point operations, bytes. Nothing is allocated.

Shapes as in `gpt`: D width, H heads of width E, K = kv_heads·E the width of keys and of values, F feed-forward width, V
vocabulary, T tokens of a row. One multiplication with its addition counts as 2 operations (FLOPs). Norms, activations,
softmax and lookups are left out of the operations: together they are a per cent of them from D = 256 on.
"""

from __future__ import annotations

import dataclasses
import math

from lmforge.model import linear_attention
from lmforge.model.config import GPTConfig
from lmforge.model.kernels import banded, causal_bf16
from lmforge.model.loss import loss_chunk
from lmforge.model.lsh import bucket_sides
from lmforge.model.softmax_attention import Softmax, saves_attention

TRAINING = 3  # times the forward pass: the backward pass makes two products (for inputs and for weights) of each one
# times, for attention by the library's kernel: its backward pass makes the scores again (Dao et al. 2022)
KERNEL_TRAINING = 3.5


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by component; an embedding that is also the output matrix counts once. Their sum is the network's."""
    c, width = config, config.d_model
    of_norm = width * (2 if c.biases and c.norm == "layernorm" else 1)
    kinds = [c.kind_of(layer) for layer in range(c.layers)]
    last = dataclasses.replace(c, experts=0)
    ahead = c.ahead * (
        2 * width * width
        + (width if c.biases else 0)
        + _attention(c, kinds[-1])
        + _feed_forward(last)
        + 4 * of_norm
        + _head_norms(c, kinds[-1])
    )
    side = c.image_size // c.image_patch if c.image_size else 0
    return {
        "embedding": c.vocab_size * width,
        "output": 0 if c.tied else c.vocab_size * width,
        "ngrams": 2 * c.ngram_rows * width,
        "positions": c.context * width if c.positions == "learned" else 0,
        "patches": width * (c.image_channels * c.image_patch**2 + 1 + 2 * side) if side else 0,
        "attention": sum(_attention(c, kind) for kind in kinds),
        "feed_forward": c.layers * _feed_forward(c),
        "norms": (2 * c.layers + 1) * of_norm + sum(_head_norms(c, kind) for kind in kinds),
        "ahead": ahead,
    }


def _attention(c: GPTConfig, kind: str) -> int:
    """Parameters of one layer's attention, norms left out."""
    width, keys = c.d_model, c.kv_heads * c.head_width
    out = width + (1 if kind == "lsh" else 2) * keys
    count = width * out + width * width + (out + width if c.biases else 0)
    if kind in ("pooled", "sparse") and c.pooling == "conv":
        count += 2 * c.pool * keys
    if kind == "linear" and c.feature_map == "learned":
        count += (c.heads + c.kv_heads) * c.head_width**2
    return count


def _head_norms(c: GPTConfig, kind: str) -> int:
    return (1 if kind == "lsh" else 2) * c.head_width if c.qk_norm else 0


def _feed_forward(c: GPTConfig) -> int:
    """Parameters of one layer's feed-forward part."""

    def of(units: int) -> int:
        up = units * (2 if c.activation == "swiglu" else 1)
        return c.d_model * (up + units) + (up + c.d_model if c.biases else 0)

    if not c.experts:
        return of(c.d_ff)
    unit = c.d_ff // c.experts
    shared = of(unit * c.experts_shared) if c.experts_shared else 0
    return c.experts * of(unit) + shared + c.experts * c.d_model + (c.experts if c.balance == "bias" else 0)


def active_parameters(config: GPTConfig) -> int:
    """Parameters that one token's prediction touches: all but the rows of tables that are not looked up, the experts
    that are not chosen, and what is used in training only."""
    c, counted = config, parameters(config)
    idle = counted["ngrams"] + counted["positions"] + counted["ahead"] + counted["patches"]
    if not c.tied:
        idle += counted["embedding"] - c.d_model
    if c.experts:
        few = dataclasses.replace(c, experts=c.experts_active, d_ff=c.d_ff // c.experts * c.experts_active)
        idle += c.layers * (
            _feed_forward(c) - _feed_forward(few) - (c.experts - c.experts_active) * (c.d_model + (c.balance == "bias"))
        )
    rows = (2 if c.ngram_rows else 0) + (1 if c.positions == "learned" else 0)
    return sum(counted.values()) - idle + rows * c.d_model


def flops_per_token(config: GPTConfig, context: int) -> dict[str, float]:
    """Operations of the forward pass for a token of a row of `context` tokens, on average, by component.

    Attention is causal: in a full layer token t meets t + 1 keys, (T + 1)/2 on average, half of what a full T×T product
    would take. The other kinds count what their fast path computes, what their masks hide included. Training takes
    `training_flops_per_token`.
    """
    return _forward(
        config, [_mixing(config, config.kind_of(layer), context) / context for layer in range(config.layers)]
    )


def decode_flops_per_token(config: GPTConfig, cached: int) -> dict[str, float]:
    """Operations to predict one more token after `cached` tokens, with what the kinds of attention keep of them."""
    return _forward(config, [_mixing_one(config, config.kind_of(layer), cached + 1) for layer in range(config.layers)])


def training_flops_per_token(config: GPTConfig, context: int) -> float:
    """Operations of forward and backward pass for a token of a row of `context` tokens, on average, with what is
    computed again."""
    c, forward = config, flops_per_token(config, context)
    kernel = (
        sum(_mixing(c, c.kind_of(layer), context) for layer in range(c.layers) if c.kind_of(layer) != "linear")
        / context
    )
    hashes = sum(_hashing(c) for layer in range(c.layers) if c.kind_of(layer) == "lsh")
    total = (
        TRAINING * sum(forward.values()) + (KERNEL_TRAINING - TRAINING) * (kernel - hashes) - (TRAINING - 1) * hashes
    )
    if c.recompute or c.residual == "reversible":
        total += sum(forward.values()) - forward["head"]
    if c.recompute:  # what is kept of attention need not be made again
        total -= (
            sum(_mixing(c, kind, context) for kind in map(c.kind_of, range(c.layers)) if saves_attention(c, kind))
            / context
        )
    if c.recompute and c.residual != "reversible" and not c.experts:  # nor what the feed-forward part gave
        total -= 2.0 * c.layers * c.d_ff * c.d_model
    total += sum(_made_again(c, c.kind_of(layer), context) for layer in range(c.layers)) / context
    if c.ahead:
        kind = c.kind_of(c.layers - 1)
        one = _forward(
            dataclasses.replace(c, layers=1, attention=(kind,), experts=0), [_mixing(c, kind, context) / context]
        )
        total += c.ahead * (
            TRAINING * (sum(one.values()) + 4.0 * c.d_model**2) + _made_again(c, kind, context) / context
        )
    return total


def _forward(config: GPTConfig, mixing: list[float]) -> dict[str, float]:
    """By component; `mixing` is what each layer's attention takes for a token, its projections left out."""
    c, width, keys = config, config.d_model, config.kv_heads * config.head_width
    shared = sum(c.kind_of(layer) == "lsh" for layer in range(c.layers))
    unit = width * (3 if c.activation == "swiglu" else 2)
    units = c.d_ff if not c.experts else c.d_ff // c.experts * (c.experts_active + c.experts_shared)
    return {
        "projections": 2.0 * c.layers * (width * (width + 2 * keys) + width * width) - 2.0 * shared * width * keys,
        "attention": sum(mixing),
        "feed_forward": 2.0 * c.layers * (unit * units + c.experts * width),
        "head": 2.0 * width * c.vocab_size,
    }


def _mixing(c: GPTConfig, kind: str, length: int) -> float:
    """Operations of one layer to mix a row of `length` tokens: Q·Kᵀ, then its softmax times V, over the pairs that
    meet."""
    if kind == "linear":
        chunk = min(linear_attention.CHUNK, length)
        return math.ceil(length / chunk) * chunk * _linear(c, chunk)
    if kind == "lsh":
        pieces = math.ceil(length / c.lsh_span)
        return 4.0 * c.d_model * c.lsh_rounds * pieces * 2 * c.lsh_span**2 + length * _hashing(c)
    rule = Softmax(c, kind)
    if rule.window is None or length <= rule.window:
        return 4.0 * c.d_model * length * (length + 1) / 2
    return 4.0 * c.d_model * banded.pairs(length, rule.window, rule.layout(length)[0])


def _made_again(c: GPTConfig, kind: str, length: int) -> float:
    """Operations that the backward pass of linear attention adds to twice its forward pass: scores within chunks and
    their sums, once more."""
    if kind != "linear":
        return 0.0
    features, chunk = c.head_width * (2 if c.feature_map == "learned" else 1), min(linear_attention.CHUNK, length)
    return math.ceil(length / chunk) * chunk * 2.0 * c.heads * features * (chunk + c.head_width + 1)


def _mixing_one(c: GPTConfig, kind: str, length: int) -> float:
    """The same for the last token of `length`, when decoding."""
    if kind == "linear":
        return _linear(c, 1)
    if kind == "lsh":
        return 4.0 * c.d_model * c.lsh_rounds * c.lsh_span + _hashing(c)
    rule = Softmax(c, kind)
    if rule.window is None or length <= rule.window:
        return 4.0 * c.d_model * length
    return 4.0 * c.d_model * (rule.window + int((rule.layout(length)[0] < length).sum()))


def _linear(c: GPTConfig, chunk: int) -> float:
    """Linear attention of one token in a chunk: scores, their product with values, the sums it adds to, the sums it
    reads."""
    features, values = c.head_width * (2 if c.feature_map == "learned" else 1), c.head_width + 1
    maps = 2.0 * (c.heads + c.kv_heads) * c.head_width**2 if c.feature_map == "learned" else 0.0
    return 2.0 * c.heads * (chunk * (features + values) + 2 * features * values) + maps


def _hashing(c: GPTConfig) -> float:
    """The rotations of one token of one LSH layer."""
    return 2.0 * c.d_model * c.lsh_rounds * sum(side // 2 for side in bucket_sides(c))


def activation_bytes_per_token(config: GPTConfig, half: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass, per token in flight; `half`: bfloat16 autocast over float32
    weights.

    Counted from the network tensor by tensor (views share the storage of what they view). Scores of attention are not
    kept: the library's kernels make them again (Dao et al. 2022), but for short rows in half precision on a CPU
    (`kernels.causal_bf16`). An upper bound where a fused kernel keeps less (RMSNorm on a GPU). With recomputation: what
    enters each block, and what attention mixed where that is worth it (`saves_attention`); with reversible blocks: the
    two streams (with both, what attention mixed as well). `working_bytes_per_token` comes on top.
    """
    c, width = config, config.d_model
    a = 2 if half else 4  # bytes of a number that goes through matrix products; the residual stream stays float32
    rms = c.norm == "rmsnorm"
    norm = 4 * width + (4 * width + 4 if rms else 8) + a * width  # input; normalised input and its scale; output
    ids = 8 * (3 if c.ngram_rows else 1)
    # the last norm's output is replaced by the gradient that the loss makes at once
    last = norm - a * width + 4 * width
    kinds = [c.kind_of(layer) for layer in range(c.layers)]
    mixed = sum(a * width for kind in kinds if c.recompute and saves_attention(c, kind))
    if c.residual == "reversible":
        return round(8 * width + mixed + ids)
    if c.recompute:
        return round(4 * width * c.layers + mixed + ids)
    attention = sum(norm + _attention_bytes(c, kind, a, half) for kind in kinds)
    return round(attention + c.layers * (norm + _feed_forward_bytes(c, a)) + last + ids)


def working_bytes_per_token(config: GPTConfig, half: bool = False) -> int:
    """Bytes that live briefly in the backward pass at its fullest moment, per token in flight, beside what is kept
    until then.

    Plain: the last layer's gradients, when what the output took is free again. Made again: one layer's attention with
    its gradients (the feed-forward part goes in pieces). Scratch of a fixed size is not in it. Fitted to the
    allocator's peaks (`tests/model/test_cost.py`).
    """
    c, a = config, 2 if half else 4
    return round(max(_working_bytes(c, kind, a, half) for kind in map(c.kind_of, range(c.layers))))


def _working_bytes(c: GPTConfig, kind: str, a: int, half: bool) -> float:
    """The same for one layer."""
    width, keys = c.d_model, c.kv_heads * c.head_width
    mixing = a * (width + (1 if kind == "lsh" else 2) * keys)  # the gradients of queries, keys and values
    if kind == "lsh":  # one round: sorted copies and their gradients, masks; sums over the rounds
        mixing = max(mixing, 17 * a * width + 4 * 4 * c.lsh_span * c.heads)
    made_again = c.residual == "reversible" or c.recompute
    if not made_again:
        units = c.d_ff if not c.experts else c.d_ff // c.experts * (c.experts_active + c.experts_shared)
        feed_forward, free = 4 * width + 2 * a * units, 12 * width
        return max(feed_forward - free, mixing - free - a * units, 0)
    # gradients of twice as many features, and of what they are the softmax of
    if kind == "linear" and c.feature_map == "learned":
        mixing += 4 * a * width
    inside = a * width + 8 + _attention_bytes(c, kind, a, half)
    streams = 12 * width if c.residual == "reversible" else 8 * width  # their gradients
    # what attention gave is there already; of the projections the values alone are copied
    if c.recompute and saves_attention(c, kind):
        inside -= a * (width + keys) if c.positions == "rope" and not c.qk_norm else 0
        inside -= a * width if c.residual != "reversible" else 0
    else:
        inside += a * width  # the branch's result
    return inside + mixing + streams + (a * width if c.residual == "reversible" and not c.recompute else 0)


def _feed_forward_bytes(c: GPTConfig, a: int) -> float:
    """Kept of one layer's feed-forward part, per token."""
    kept = {"relu": 1, "swiglu": 4}.get(c.activation, 2)
    if not c.experts:
        return a * c.d_ff * kept
    units = c.d_ff // c.experts * (c.experts_active + c.experts_shared)
    # copies of the token for its experts, what they give, sorted back; logits, scores, indices and places
    routed = c.experts_active * (a * c.d_model * 2 + 8 * 3 + 4 * 3) + 4 * c.experts * 2
    return a * units * kept + routed


def _attention_bytes(c: GPTConfig, kind: str, a: int, half: bool) -> float:
    """Kept of one layer's attention, per token."""
    width, keys, heads = c.d_model, c.kv_heads * c.head_width, c.heads + c.kv_heads
    shared, rms = kind == "lsh", c.norm == "rmsnorm"
    if shared:
        heads, turned = c.heads, width
    else:
        turned = width + keys
    # queries, keys and values before rotation; the values are used from here
    kept: float = a * (width + (1 if shared else 2) * keys)
    if c.qk_norm:
        # RMSNorm keeps its input normalised, and raised to float32 where it came in half precision.
        kept += (8 if half else 4) * turned + 4 * heads if rms else 8 * heads
    if c.qk_norm or c.positions == "rope":
        kept += a * turned
    kept += a * width + 4 * c.heads  # what attention gives, and its log-sum of exponentials
    if kind == "linear":
        if not c.qk_norm:  # then nothing of what the projections gave is kept as such
            kept -= a * (width + 2 * keys)
        # nor rotated: the features are all that is needed
        if c.feature_map == "elu" and (c.qk_norm or c.positions == "rope"):
            kept -= a * turned
        return kept - 4 * c.heads + _linear_bytes(c, a)
    if shared:
        # the queries' directions and lengths; buckets
        return kept + a * width + 4 * c.heads * 2 + 8 * c.lsh_rounds * c.heads
    rule = Softmax(c, kind)
    if rule.window is None:
        shares = (
            half and c.context <= causal_bf16.LONGEST and c.heads == c.kv_heads
        )  # kept on a CPU, instead of log-sums
        return kept + c.heads * (2 * causal_bf16.shares_kept(c.context) - 4 if shares else 0)
    kept -= 4 * c.heads  # the band makes its softmax again without it
    extras = (1 / rule.stride if rule.stride else 0) + (1 / rule.pool if rule.pool else 0)
    copies = width if c.heads > c.kv_heads else keys
    kept += 2 * a * copies * extras
    if c.heads > c.kv_heads:  # keys and values are written out for every head
        kept += 2 * a * width - (a * keys if c.positions == "rope" or c.qk_norm else 0)
    return kept


def _linear_bytes(c: GPTConfig, a: int) -> float:
    """What linear attention keeps beside what attention gives: features, values, the denominator, the state before each
    piece of the text."""
    features = c.head_width * (2 if c.feature_map == "learned" else 1)
    kept = a * c.head_width * c.kv_heads + a * features * (c.heads + c.kv_heads) + 4 * c.heads
    if c.heads > c.kv_heads:  # keys and values are written out for every head
        kept += a * (features + c.head_width) * c.heads - a * c.head_width * c.kv_heads
    return kept + 4 * c.heads * features * (c.head_width + 1) / (linear_attention.PIECE * linear_attention.CHUNK)


def training_bytes(
    config: GPTConfig, tokens: int, optimizer: str = "adamw", half: bool = False, packed: bool = False
) -> dict[str, int]:
    """Bytes of one device that trains on `tokens` tokens at a time (one micro-batch), by component.

    weights: float32, and with `half` the bfloat16 copies that autocast keeps of the blocks' matrices; optimizer:
    AdamW's two moments, or Muon's one for the blocks' matrices (`optimizer` "muon"), or SGD's one; with `packed` a byte
    and a 64th for each instead of four;
    logits: those of `loss_chunk` tokens and their gradient, and the gradient of the output matrix until it joins the
    embedding's. Muon's short-lived workspace is not in it.
    """
    counted = parameters(config)
    total = sum(counted.values())
    vectors = config.layers * config.experts if config.balance == "bias" else 0
    if config.biases:
        keys, up = config.kv_heads * config.head_width, 2 if config.activation == "swiglu" else 1
        experts = max(1, config.experts)
        vectors += config.layers * (2 * config.d_model + 2 * keys + up * config.d_ff + (experts - 1) * config.d_model)
    matrices = counted["attention"] + counted["feed_forward"] - vectors
    moments = {"adamw": 2 * total, "muon": 2 * total - matrices, "sgd": total}[optimizer]
    chunk = min(tokens, loss_chunk(config.d_model))
    return {
        "weights": 4 * total + (2 * matrices if half else 0),
        "gradients": 4 * total,
        "optimizer": round(moments * (1 + 4 / 256)) if packed else 4 * moments,
        "activations": tokens * (activation_bytes_per_token(config, half) + working_bytes_per_token(config, half)),
        "logits": chunk * config.vocab_size * (2 + 4 + 2 if half else 4 + 4)
        + 4 * (counted["output"] or counted["embedding"]),
    }


def decoding_bytes(config: GPTConfig, rows: int, capacity: int, bytes_per_weight: float = 4) -> dict[str, int]:
    """Bytes to decode `rows` texts of up to `capacity` tokens side by side: weights, what each layer keeps of them
    (float32), logits."""
    c, keys = config, config.kv_heads * config.head_width
    cache = 0.0
    for layer in range(c.layers):
        kind = c.kind_of(layer)
        if kind == "linear":
            cache += 4 * c.heads * c.head_width * (2 if c.feature_map == "learned" else 1) * (c.head_width + 1)
        elif kind == "lsh":
            buckets = c.lsh_rounds * c.heads * (math.prod(bucket_sides(c)) + 1)
            cache += 2 * 4 * c.d_model * (capacity + 1) + 8 * buckets * (c.lsh_span + 1)
        else:
            rule = Softmax(c, kind)
            slots: int = capacity if rule.window is None else min(rule.window, capacity) + len(rule.layout(capacity)[0])
            cache += 2 * 4 * keys * (slots + 1 + (1 if rule.pool else 0))
    return {
        "weights": round(bytes_per_weight * sum(parameters(config).values())),
        "cache": round(rows * cache),
        "logits": 4 * rows * config.vocab_size,
    }
