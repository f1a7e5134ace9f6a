"""What a network costs, as formulas per component: parameters, floating-point operations, bytes. Nothing is allocated.

Shapes as in `gpt`: D width, H heads of width E, K = kv_heads·E the width of keys and of values, F feed-forward width, V vocabulary,
T tokens of a row. One multiplication with its addition counts as 2 operations (FLOPs). Norms, activations, softmax and lookups are
left out of the operations: together they are a per cent of them from D = 256 on.
"""

from __future__ import annotations

from lmforge.model.gpt import GPTConfig

TRAINING = 3  # times the forward pass: the backward pass makes two products (for inputs and for weights) of each one
LOSS_CHUNK = 512  # tokens whose logits exist at once: the default of `GPT.loss`


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by component; the embedding, which is also the output matrix, counts once. Their sum is the network's."""
    c, width, keys = config, config.d_model, config.kv_heads * config.head_width
    of_norm = width * (2 if c.biases and c.norm == "layernorm" else 1)
    attention = width * (width + 2 * keys) + width * width
    feed_forward = 2 * width * c.d_ff
    if c.biases:
        attention += 2 * width + 2 * keys
        feed_forward += c.d_ff + width
    norms = (2 * c.layers + 1) * of_norm + (2 * c.layers * c.head_width if c.qk_norm else 0)
    return {
        "embedding": c.vocab_size * width,
        "ngrams": 2 * c.ngram_rows * width,
        "positions": c.context * width if c.positions == "learned" else 0,
        "attention": c.layers * attention,
        "feed_forward": c.layers * feed_forward,
        "norms": norms,
    }


def active_parameters(config: GPTConfig) -> int:
    """Parameters that one token's prediction touches: all but the rows of the n-gram and position tables that are not looked up."""
    counted = parameters(config)
    tables = counted["ngrams"] + counted["positions"]
    rows = (2 if config.ngram_rows else 0) + (1 if config.positions == "learned" else 0)
    return sum(counted.values()) - tables + rows * config.d_model


def flops_per_token(config: GPTConfig, context: int) -> dict[str, float]:
    """Operations of the forward pass for a token of a row of `context` tokens, on average, by component.

    Attention is causal: token t meets t + 1 keys, (T + 1)/2 on average, half of what a full T×T product would take. Training takes
    `TRAINING` times this.
    """
    return _forward(config, (context + 1) / 2)


def decode_flops_per_token(config: GPTConfig, cached: int) -> dict[str, float]:
    """Operations to predict one more token after `cached` tokens whose keys and values are kept."""
    return _forward(config, cached + 1)


def _forward(config: GPTConfig, met: float) -> dict[str, float]:
    c, width, keys = config, config.d_model, config.kv_heads * config.head_width
    return {
        "projections": 2.0 * c.layers * (width * (width + 2 * keys) + width * width),
        "attention": 2.0 * c.layers * 2 * width * met,  # Q·Kᵀ, then its softmax times V
        "feed_forward": 2.0 * c.layers * 2 * width * c.d_ff,
        "head": 2.0 * width * c.vocab_size,
    }


def activation_bytes_per_token(config: GPTConfig, half: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass, per token in flight; `half`: bfloat16 autocast over float32 weights.

    Counted from `gpt.py` tensor by tensor (views share the storage of what they view). Scores of attention are not kept: the library's
    kernels make them again (Dao et al. 2022). An upper bound where a fused kernel keeps less (RMSNorm on a GPU).
    """
    c, width, keys = config, config.d_model, config.kv_heads * config.head_width
    a = 2 if half else 4  # bytes of a number that goes through matrix products; the residual stream stays float32
    rms = c.norm == "rmsnorm"
    norm = 4 * width + (4 * width + 4 if rms else 8) + a * width  # input; normalised input and its scale; output
    attention = a * (width + 2 * keys)  # queries, keys and values before rotation; the values are used from here
    if c.qk_norm:
        heads = c.heads + c.kv_heads
        # RMSNorm keeps its input normalised, and raised to float32 where it came in half precision.
        attention += (8 if half else 4) * (width + keys) + 4 * heads if rms else 8 * heads
    if c.qk_norm or c.positions == "rope":
        attention += a * (width + keys)
    attention += a * width + 4 * c.heads  # what attention gives, and its log-sum of exponentials
    feed_forward = a * c.d_ff * (1 if c.activation == "relu" else 2)
    ids = 8 * (3 if c.ngram_rows else 1)
    last = norm - a * width + 4 * width  # the last norm's output is replaced by the gradient that the loss makes at once
    return c.layers * (2 * norm + attention + feed_forward) + last + ids


def training_bytes(config: GPTConfig, tokens: int, optimizer: str = "adamw", half: bool = False, packed: bool = False) -> dict[str, int]:
    """Bytes of one device that trains on `tokens` tokens at a time (one micro-batch), by component.

    weights: float32, and with `half` the bfloat16 copies that autocast keeps of the blocks' matrices; optimizer: AdamW's two moments,
    or Muon's one for the blocks' matrices (`optimizer` "muon"), or SGD's one; with `packed` a byte and a 64th for each instead of four;
    logits: those of `LOSS_CHUNK` tokens and their gradient, and the gradient of the output matrix until it joins the embedding's. Muon's
    short-lived workspace is not in it.
    """
    counted = parameters(config)
    total = sum(counted.values())
    matrices = config.layers * config.d_model * (2 * config.d_model + 2 * config.kv_heads * config.head_width + 2 * config.d_ff)
    moments = {"adamw": 2 * total, "muon": 2 * total - matrices, "sgd": total}[optimizer]
    chunk = min(tokens, LOSS_CHUNK)
    return {
        "weights": 4 * total + (2 * matrices if half else 0),
        "gradients": 4 * total,
        "optimizer": round(moments * (1 + 4 / 256)) if packed else 4 * moments,
        "activations": tokens * activation_bytes_per_token(config, half),
        "logits": chunk * config.vocab_size * (2 + 4 + 2 if half else 4 + 4) + 4 * counted["embedding"],
    }


def decoding_bytes(config: GPTConfig, rows: int, capacity: int, bytes_per_weight: float = 4) -> dict[str, int]:
    """Bytes to decode `rows` texts of up to `capacity` tokens side by side: weights, keys and values (float32), logits."""
    keys = config.kv_heads * config.head_width
    return {
        "weights": round(bytes_per_weight * sum(parameters(config).values())),
        "cache": 2 * 4 * config.layers * rows * capacity * keys,
        "logits": 4 * rows * config.vocab_size,
    }
