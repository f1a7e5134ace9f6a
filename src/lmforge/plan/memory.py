"""What a network takes in memory, as formulas: bytes to train and to decode. Nothing is allocated; layers may differ.

Shapes as in `cost`.
"""

from __future__ import annotations

import math

from lmforge.model import linear_attention
from lmforge.model.config import GPTConfig, LayerShape
from lmforge.model.kernels import causal_bf16
from lmforge.model.loss import loss_chunk
from lmforge.model.lsh import bucket_sides
from lmforge.model.softmax_attention import Softmax, saves_attention
from lmforge.plan.cost import Layer, biases_of_attention, layers_of, parameters


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
    norm = _norm_bytes(c, a)
    ids = 8 * (3 if c.ngram_rows else 1)
    # the last norm's output is replaced by the gradient that the loss makes at once
    last = norm - a * width + 4 * width
    layers = layers_of(c)
    whole = [layer for layer in layers if layer.whole]
    mixed = sum(a * layer.queries for layer in whole if c.recompute and saves_attention(c, layer.kind))
    if c.residual == "reversible":
        if len(whole) < len(layers):  # each block is called whole: what enters it is kept, of each stream once
            streams = 1 + sum((layer.shape.heads > 0) + (layer.shape.d_ff > 0) for layer in layers[:-1])
            return round(4 * width * streams + ids)
        return round(8 * width + mixed + ids)
    if c.recompute:
        return round(4 * width * c.layers + mixed + ids)
    kept = sum(_attending_bytes(c, layer, a, half) + _feeding_bytes(c, layer, a) for layer in layers)
    return round(kept + last + ids)


def _norm_bytes(c: GPTConfig, a: int) -> int:
    """Kept of one norm, per token: its input; the normalised input and its scale; its output."""
    return 4 * c.d_model + (4 * c.d_model + 4 if c.norm == "rmsnorm" else 8) + a * c.d_model


def _norms_bytes(c: GPTConfig, a: int) -> int:
    """Kept of the norms of one branch, what enters it included: a norm after it keeps what the branch gave in the place
    of what it would have been given; where there are two, that and its own come on top."""
    return _norm_bytes(c, a) + (_norm_bytes(c, a) - 4 * c.d_model if c.norm_placement == "both" else 0)


def _attending_bytes(c: GPTConfig, layer: Layer, a: int, half: bool) -> float:
    """Kept of one layer's first branch, per token."""
    return _norms_bytes(c, a) + _attention_bytes(c, layer, a, half) if layer.shape.heads else 0


def _feeding_bytes(c: GPTConfig, layer: Layer, a: int) -> float:
    """Kept of one layer's second branch, per token; parallel branches share what enters them."""
    if not layer.shape.d_ff:
        return 0
    shared = 4 * c.d_model if c.parallel_residual and layer.shape.heads else 0
    return _norms_bytes(c, a) - shared + _feed_forward_bytes(c, layer.shape, a)


def working_bytes_per_token(config: GPTConfig, half: bool = False) -> int:
    """Bytes that live briefly in the backward pass at its fullest moment, per token in flight, beside what is kept
    until then.

    Plain: the last layer's gradients, when what the output took is free again. Made again: one layer's attention with
    its gradients (the feed-forward part goes in pieces). Scratch of a fixed size is not in it. Fitted to the
    allocator's peaks (`tests/plan/test_memory.py`).
    """
    c, a = config, 2 if half else 4
    return round(max(_working_bytes(c, layer, a, half) for layer in layers_of(c)))


def _working_bytes(c: GPTConfig, layer: Layer, a: int, half: bool) -> float:
    """The same for one layer."""
    width, queries = c.d_model, layer.queries
    mixing: float = a * layer.projected  # the gradients of queries, keys and values
    if layer.kind == "lsh":  # one round: sorted copies and their gradients, masks; sums over the rounds
        mixing = max(mixing, 17 * a * queries + 4 * 4 * c.lsh_span * layer.shape.heads)
    made_again = c.residual == "reversible" or c.recompute
    if not made_again:
        units = _units_met(c, layer.shape)
        feed_forward, free = 4 * width + 2 * a * units, 12 * width
        return max(feed_forward - free, mixing - free - a * units, 0)
    # gradients of twice as many features, and of what they are the softmax of
    if layer.kind == "linear" and c.feature_map == "learned":
        mixing += 4 * a * queries
    inside = a * width + 8 + _attention_bytes(c, layer, a, half)
    streams = 12 * width if c.residual == "reversible" else 8 * width  # their gradients
    # what attention gave is there already; of the projections the values alone are copied
    if c.recompute and layer.whole and saves_attention(c, layer.kind):
        inside -= a * (queries + layer.keys) if c.positions == "rope" and not (c.qk_norm or c.qk_norm_full) else 0
        inside -= a * queries if c.residual != "reversible" else 0
    else:
        inside += a * width  # the branch's result
    if not layer.usual:  # the block is called whole, so nothing of it goes in pieces
        inside += _feeding_bytes(c, layer, a)
    return inside + mixing + streams + (a * width if c.residual == "reversible" and not c.recompute else 0)


def _units_met(c: GPTConfig, shape: LayerShape) -> int:
    """Units of a layer's feed-forward part that one token meets."""
    if not shape.experts:
        return shape.d_ff
    return shape.d_ff // shape.experts * (c.experts_active + c.experts_shared)


def _feed_forward_bytes(c: GPTConfig, shape: LayerShape, a: int) -> float:
    """Kept of one layer's feed-forward part, per token."""
    kept, units = {"relu": 1, "swiglu": 4, "geglu": 4}.get(c.activation, 2), _units_met(c, shape)
    thin = a * (shape.up_rank + shape.down_rank) * ((c.experts_active + bool(c.experts_shared)) if shape.experts else 1)
    if not shape.experts:
        return a * units * kept + thin
    # copies of the token for its experts, what they give, sorted back; logits, scores, indices and places
    routed = c.experts_active * (a * c.d_model * 2 + 8 * 3 + 4 * 3) + 4 * shape.experts * 2
    return a * units * kept + thin + routed


def _attention_bytes(c: GPTConfig, layer: Layer, a: int, half: bool) -> float:
    """Kept of one layer's attention, per token."""
    shape, queries, keys = layer.shape, layer.queries, layer.keys
    heads, shared, rms = shape.heads + shape.kv_heads, layer.kind == "lsh", c.norm == "rmsnorm"
    if shared:
        heads, turned = shape.heads, queries
    else:
        turned = queries + keys
    # queries, keys and values before rotation; the values are used from here
    kept: float = a * (layer.projected + shape.qkv_rank + shape.out_rank)
    if c.qk_norm_full:
        heads = 1 if shared else 2  # one scale for all heads together
    normed = c.qk_norm or c.qk_norm_full
    if normed:
        # RMSNorm keeps its input normalised, and raised to float32 where it came in half precision.
        kept += (8 if half else 4) * turned + 4 * heads if rms else 8 * heads
    if normed or c.positions == "rope":
        kept += a * turned
    elif c.attention_scale:
        kept += a * queries
    kept += a * queries + 4 * shape.heads  # what attention gives, and its log-sum of exponentials
    if layer.kind == "linear":
        if not normed:  # then nothing of what the projections gave is kept as such
            kept -= a * layer.projected
        # nor rotated: the features are all that is needed
        if c.feature_map == "elu" and (normed or c.positions == "rope"):
            kept -= a * turned
        return kept - 4 * shape.heads + _linear_bytes(c, shape, a)
    if shared:
        # the queries' directions and lengths; buckets
        return kept + a * queries + 4 * shape.heads * 2 + 8 * c.lsh_rounds * shape.heads
    rule = Softmax(c, layer.kind)
    if rule.window is None:
        shares = (
            half and c.context <= causal_bf16.LONGEST and shape.heads == shape.kv_heads
        )  # kept on a CPU, instead of log-sums
        return kept + shape.heads * (2 * causal_bf16.shares_kept(c.context) - 4 if shares else 0)
    kept -= 4 * shape.heads  # the band makes its softmax again without it
    extras = (1 / rule.stride if rule.stride else 0) + (1 / rule.pool if rule.pool else 0)
    copies = queries if shape.heads > shape.kv_heads else keys
    kept += 2 * a * copies * extras
    if shape.heads > shape.kv_heads:  # keys and values are written out for every head
        kept += 2 * a * queries - (a * keys if c.positions == "rope" or normed else 0)
    return kept


def _linear_bytes(c: GPTConfig, shape: LayerShape, a: int) -> float:
    """What linear attention keeps beside what attention gives: features, values, the denominator, the state before each
    piece of the text."""
    features = c.head_width * (2 if c.feature_map == "learned" else 1)
    kept = a * c.head_width * shape.kv_heads + a * features * (shape.heads + shape.kv_heads) + 4 * shape.heads
    if shape.heads > shape.kv_heads:  # keys and values are written out for every head
        kept += a * (features + c.head_width) * shape.heads - a * c.head_width * shape.kv_heads
    return kept + 4 * shape.heads * features * (c.head_width + 1) / (linear_attention.PIECE * linear_attention.CHUNK)


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
    vectors = sum(_vectors(config, layer) for layer in layers_of(config))
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


def _vectors(c: GPTConfig, layer: Layer) -> int:
    """Parameters of a layer's attention and feed-forward part that stand in no matrix: biases."""
    shape = layer.shape
    vectors = shape.experts if shape.d_ff and c.balance == "bias" else 0
    if shape.heads:
        vectors += biases_of_attention(c, layer)
    if shape.d_ff and c.biases:
        units = shape.d_ff + (shape.d_ff // shape.experts * c.experts_shared if shape.experts else 0)
        networks = max(1, shape.experts) + bool(shape.experts and c.experts_shared)
        vectors += units * (2 if c.gated else 1) + networks * c.d_model
    return vectors


def decoding_bytes(config: GPTConfig, rows: int, capacity: int, bytes_per_weight: float = 4) -> dict[str, int]:
    """Bytes to decode `rows` texts of up to `capacity` tokens side by side: weights, what each layer keeps of them
    (float32), logits."""
    c = config
    cache = 0.0
    for layer in layers_of(c):
        heads = layer.shape.heads
        if not heads:
            continue
        if layer.kind == "linear":
            cache += 4 * heads * c.head_width * (2 if c.feature_map == "learned" else 1) * (c.head_width + 1)
        elif layer.kind == "lsh":
            buckets = c.lsh_rounds * heads * (math.prod(bucket_sides(c)) + 1)
            cache += 2 * 4 * layer.queries * (capacity + 1) + 8 * buckets * (c.lsh_span + 1)
        else:
            rule = Softmax(c, layer.kind)
            slots: int = capacity if rule.window is None else min(rule.window, capacity) + len(rule.layout(capacity)[0])
            cache += 2 * 4 * layer.keys * (slots + 1 + (1 if rule.pool else 0))
    return {
        "weights": round(bytes_per_weight * sum(parameters(config).values())),
        "cache": round(rows * cache),
        "logits": 4 * rows * config.vocab_size,
    }
