"""The layers of every network that lmforge trains, in plain torch, reading whole texts: the first half of the modelling
file that an export to `transformers` carries (`modeling_lmforge` is the second).

They are written to be read and to run anywhere, not to be fast; `lmforge.model` is what training uses.
Shapes: B rows, T tokens, S keys, H heads of width E, D width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKABLE = {"full", "window", "strided"}
EXPERT_SCALE = 1.5  # of what experts give, with weights that sum to how many they are
ROUTER_SCALE = 3.0  # of the router's logits, over √D
CHOICE_SCALE = 4.0  # of the bias on the choice
ITSELF = -100.0  # added to a token's score of itself in hash buckets (Kitaev et al. 2020, appendix A)


class Shape:
    """`architecture` as attributes, and what follows from it for each layer."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        self.__dict__.update(architecture)
        self.head_width = self.head_dim or self.d_model // self.heads
        for name in ("qkv_biases", "out_biases", "norm_biases"):
            if getattr(self, name) is None:
                setattr(self, name, self.biases)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"config.json: architecture has no {name}")

    def kind(self, layer: int) -> str:
        """The kind of attention of a layer."""
        kinds = self.attention
        return str(kinds[layer % len(kinds)])

    def layer(self, layer: int) -> dict[str, int]:
        """The widths of a layer."""
        if self.layer_shapes:
            return dict(self.layer_shapes[layer])
        return {"heads": self.heads, "kv_heads": self.kv_heads, "d_ff": self.d_ff, "experts": self.experts}


def linear(inputs: int, outputs: int, bias: bool, rank: int = 0) -> nn.Module:
    """One matrix, or with a rank two thin ones."""
    if not rank:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


class Norm(nn.Module):
    """LayerNorm or RMSNorm."""

    def __init__(self, width: int, shape: Shape, bias: bool) -> None:
        super().__init__()
        self.layernorm = shape.norm == "layernorm"
        self.eps = shape.norm_eps or (1e-5 if self.layernorm else 1e-6)
        self.offset = shape.norm_offset
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and self.layernorm else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        gain = self.weight + self.offset
        if self.layernorm:
            return F.layer_norm(x, gain.shape, gain, self.bias, self.eps)
        return F.rms_norm(x, gain.shape, gain, self.eps)


def frequencies(shape: Shape, local: bool) -> tuple[Tensor, float]:
    """RoPE's angles for one position, of the pairs that turn, and the length that a rotation gives (Su et al. 2021, eq.
    15; Peng et al. 2023; Grattafiori et al. 2024, section 3.4.2)."""
    half, kind = int(shape.head_width * shape.rotary_fraction) // 2, shape.rope_scaling
    steps = torch.arange(half, dtype=torch.float64) / half
    if local:
        return shape.rope_local_base**-steps, 1.0
    stretch = 1.0 if kind == "none" else shape.rope_factor or shape.context / shape.rope_trained
    theta, size = shape.rope_base**-steps, shape.rope_magnitude
    if shape.rope_divisors:
        theta = theta / torch.tensor(shape.rope_divisors, dtype=torch.float64)
    if kind == "linear":
        theta = theta / stretch
    elif kind == "ntk":
        theta = (shape.rope_base * stretch ** (half / max(half - 1, 1))) ** -steps
    elif kind in ("yarn", "llama3"):
        low, high = (1, 32) if kind == "yarn" else (shape.rope_low, shape.rope_high)
        keep = ((shape.rope_trained * theta / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        theta = theta * (keep + (1 - keep) / stretch)
        size = size * (0.1 * math.log(stretch) + 1 if kind == "yarn" else 1.0)
    return theta, size


def rotate(x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    """x (B,H,T,E), neighbouring pairs turned by (cos, sin), each (B,1,T,E/2)."""
    if turns is None:
        return x
    cos, sin = turns
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Place:
    """Where the tokens of one pass stand: at (B,T) in the text; seen (B,T,T) what is no padding and not later."""

    def __init__(self, mask: Tensor, shape: Shape) -> None:
        self.shape = shape
        self.at = (mask.long().cumsum(1) - 1).clamp(min=0)
        index = torch.arange(mask.shape[1], device=mask.device)
        own = index[:, None] == index  # a padded query sees itself, so that no row of scores is empty
        self.seen = ((index[:, None] >= index) & (mask[:, None] > 0)) | own

    def turns(self, at: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
        """The rotations of positions (B,T) in layers of a kind; pairs that do not turn stand still."""
        shape = self.shape
        if shape.positions != "rope":
            return None
        theta, size = frequencies(shape, bool(shape.rope_local_base) and kind == "window")
        angles = at[:, None, :, None].double() * theta.to(at.device)
        still = shape.head_width // 2 - len(theta)
        cos, sin = (angles.cos() * size).float(), (angles.sin() * size).float()
        return F.pad(cos, (0, still), value=1.0), F.pad(sin, (0, still))

    def visible(self, window: int | None, stride: int | None) -> Tensor:
        """(B,1,T,T): a band of keys and, with a stride, every so many before it."""
        seen = self.seen
        if window is not None:
            near = self.at[:, :, None] - self.at[:, None] < window
            seen = seen & (near | (self.at % stride == 0)[:, None] if stride else near)
        return seen[:, None]


class Mixer(nn.Module):
    """What a kind of attention learns, beside the projections."""

    hashes: Tensor

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        kind, widths, E = shape.kind(layer), shape.layer(layer), shape.head_width
        if kind in ("pooled", "sparse") and shape.pooling == "conv":
            for name in ("pool_keys", "pool_values"):
                setattr(self, name, nn.Parameter(torch.zeros(shape.pool, widths["kv_heads"], E)))
        if kind == "linear" and shape.feature_map == "learned":
            self.q_features = nn.Parameter(torch.zeros(widths["heads"], E, E))
            self.k_features = nn.Parameter(torch.zeros(widths["kv_heads"], E, E))
        if kind == "lsh":
            wanted = math.ceil(shape.context / shape.lsh_span)
            even = 2 * math.ceil((wanted if wanted <= 64 else math.sqrt(wanted)) / 2)
            self.sides = (1,) if wanted <= 1 else (even,) if wanted <= 64 else (even, even)
            self.register_buffer("hashes", torch.zeros(shape.lsh_rounds, E, sum(side // 2 for side in self.sides)))


class Attention(nn.Module):
    """Causal attention of any kind."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        widths, self.shape, self.kind = shape.layer(layer), shape, shape.kind(layer)
        self.kv_heads, self.groups = widths["kv_heads"], widths["heads"] // widths["kv_heads"]
        self.shared, E = self.kind == "lsh", shape.head_width
        outputs = (widths["heads"] + (1 if self.shared else 2) * self.kv_heads) * E
        self.qkv = linear(shape.d_model, outputs, shape.qkv_biases, widths.get("qkv_rank", 0))
        self.out = linear(widths["heads"] * E, shape.d_model, shape.out_biases, widths.get("out_rank", 0))
        normed, whole = shape.qk_norm or shape.qk_norm_full, shape.qk_norm_full
        self.q_norm = Norm(widths["heads"] * E if whole else E, shape, False) if normed else None
        self.k_norm = Norm(self.kv_heads * E if whole else E, shape, False) if normed and not self.shared else None
        self.mixer = Mixer(shape, layer)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2)
        q, *rest = parts.split((self.groups * self.kv_heads, *[self.kv_heads] * (1 if self.shared else 2)), 1)
        q = self.normed(q, self.q_norm)
        k = q if self.shared else self.normed(rest[0], self.k_norm)
        if self.shape.attention_scale:  # scores are divided by √E below
            q = q * (self.shape.attention_scale * math.sqrt(self.shape.head_width))
        v, turns, plain = rest[-1], place.turns(place.at, self.kind), k
        q, k = rotate(q, turns), rotate(k, turns)
        if self.kind == "linear":
            y = self.linear(q, k, v)
        elif self.kind == "lsh":
            y = self.buckets(q, v)
        else:
            y = self.softmax(q, k, v, plain, place)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result

    def normed(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Queries or keys (B,H,T,E), each head by itself or all together."""
        if norm is None:
            return x
        whole = self.shape.qk_norm_full
        result: Tensor = norm(x.transpose(1, 2).flatten(2) if whole else x)
        return result.unflatten(-1, (x.shape[1], -1)).transpose(1, 2) if whole else result

    def softmax(self, q: Tensor, k: Tensor, v: Tensor, plain: Tensor, place: Place) -> Tensor:
        """A band of keys, strided ones before it, and one pooled key for each complete block that has left it."""
        shape, kind = self.shape, self.kind
        window = {"full": None, "pooled": shape.pool}.get(kind, shape.window)
        seen = place.visible(window, shape.stride if kind in ("strided", "sparse") else None)
        if kind in ("pooled", "sparse") and q.shape[2] >= shape.pool:
            first = torch.arange(q.shape[2] // shape.pool, device=q.device) * shape.pool
            pooled_k = rotate(self.pooled(plain, "pool_keys"), place.turns((first + shape.pool // 2)[None], kind))
            k, v = torch.cat((k, pooled_k), 2), torch.cat((v, self.pooled(v, "pool_values")), 2)
            far = place.at[:, :, None] >= first + max(window, shape.pool)
            seen = torch.cat((seen, far[:, None]), 3)
        k, v = (x.repeat_interleave(self.groups, 1) if self.groups > 1 else x for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    def pooled(self, x: Tensor, name: str) -> Tensor:
        """(B,H,T,E) → one for each complete block (B,H,T//pool,E)."""
        pool = int(self.shape.pool)
        blocks: Tensor = x[:, :, : x.shape[2] // pool * pool].unflatten(2, (-1, pool))
        if self.shape.pooling == "conv":
            weights: Tensor = getattr(self.mixer, name).transpose(0, 1)[:, None]
            return (blocks * weights).sum(3)
        return blocks.amax(3) if self.shape.pooling == "max" else blocks.mean(3)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Katharopoulos et al. 2020, eq. 9; features elu + 1, or learned (Zhang et al. 2024, eq. 6)."""
        if self.shape.feature_map == "learned":
            q, k = q @ self.mixer.q_features, k @ self.mixer.k_features
            q, k = (torch.cat((x, -x), -1).softmax(-1) for x in (q, k))
        else:
            q, k = F.elu(q) + 1, F.elu(k) + 1
        k, v = (x.repeat_interleave(self.groups, 1) for x in (k, v))
        weights = (q.float() @ k.float().transpose(-1, -2)).tril()
        return (weights @ v.float() / weights.sum(-1, keepdim=True)).to(v.dtype)

    def buckets(self, q: Tensor, v: Tensor) -> Tensor:
        """The last `lsh_span` tokens of a token's bucket, in each round (Kitaev et al. 2020, section 2); a key met in
        two rounds counts twice."""
        T = q.shape[2]
        causal = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        count = torch.zeros(*q.shape[:2], T, T, device=q.device)
        for hashes in self.mixer.hashes.to(q.dtype):
            bucket, begin = torch.zeros(q.shape[:3], dtype=torch.long, device=q.device), 0
            for side in self.mixer.sides:
                turned = q @ hashes[:, begin : begin + side // 2]
                begin += side // 2
                bucket = bucket * side + (torch.cat((turned, -turned), -1).argmax(-1) if side > 1 else 0)
            same = (bucket[..., None] == bucket[..., None, :]) & causal
            rank = same.sum(-1)
            count += same & (rank[..., None] - rank[..., None, :] < self.shape.lsh_span)
        scores = q.float() @ F.normalize(q.float(), dim=-1).transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores + ITSELF * torch.eye(T, device=q.device) + count.log()
        return (scores.softmax(-1) @ v.float()).to(v.dtype)


class FeedForward(nn.Module):
    """act(x W1) W2; with swiglu, gate and input side by side."""

    def __init__(self, shape: Shape, units: int, widths: dict[str, int]) -> None:
        super().__init__()
        self.activation = shape.activation
        self.gate = {"swiglu": F.silu, "geglu": lambda x: F.gelu(x, approximate="tanh")}.get(self.activation)
        wide = units * (1 if self.gate is None else 2)
        self.up = linear(shape.d_model, wide, shape.biases, widths.get("up_rank", 0))
        self.down = linear(units, shape.d_model, shape.biases, widths.get("down_rank", 0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.gate is not None:
            gate, hidden = hidden.chunk(2, -1)
            hidden = self.gate(gate) * hidden
        elif self.activation.startswith("relu"):
            hidden = F.relu(hidden) ** (2 if self.activation == "relu2" else 1)
        else:
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        result: Tensor = self.down(hidden)
        return result


class Experts(nn.Module):
    """Each token through the few networks that a router picks."""

    def __init__(self, shape: Shape, widths: dict[str, int]) -> None:
        super().__init__()
        self.active, count = shape.experts_active, widths["experts"]
        self.router = nn.Linear(shape.d_model, count, bias=False)
        self.choice_bias = nn.Parameter(torch.zeros(count)) if shape.balance == "bias" else None
        units = widths["d_ff"] // count
        self.experts = nn.ModuleList(FeedForward(shape, units, widths) for _ in range(count))
        shared = units * shape.experts_shared
        self.shared = FeedForward(shape, shared, widths) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).float() * (ROUTER_SCALE / math.sqrt(x.shape[-1]))
        biased = logits if self.choice_bias is None else logits + CHOICE_SCALE * self.choice_bias.float()
        chosen = biased.topk(self.active, -1).indices
        weights = logits.softmax(-1).gather(-1, chosen)
        weights = weights * (EXPERT_SCALE * self.active / weights.sum(-1, keepdim=True))
        share = torch.zeros_like(logits).scatter(-1, chosen, weights).to(x.dtype)
        y = torch.zeros_like(x) if self.shared is None else self.shared(x)
        for number, expert in enumerate(self.experts):
            y = y + share[..., number : number + 1] * expert(x)
        return y


class Block(nn.Module):
    """Attention and feed-forward, with norms before, after or around them; either may be missing."""

    attention_norm: nn.Module
    attention_out_norm: nn.Module
    ff_norm: nn.Module
    ff_out_norm: nn.Module

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        widths = shape.layer(layer)
        heads, units, self.parallel = widths["heads"], widths["d_ff"], shape.parallel_residual
        for name, there in (("attention", heads), ("ff", units)):
            for part, other in (("norm", "post"), ("out_norm", "pre")):
                has = there and shape.norm_placement != other
                setattr(self, f"{name}_{part}", Norm(shape.d_model, shape, shape.norm_biases) if has else nn.Identity())
        self.attention = Attention(shape, layer) if heads else None
        experts = widths.get("experts", 0)
        self.ff = (Experts(shape, widths) if experts else FeedForward(shape, units, widths)) if units else None

    def forward(self, x: Tensor, second: Tensor | None, place: Place) -> tuple[Tensor, Tensor | None]:
        """One stream, or with `second` the two of reversible blocks."""
        entering = x
        if self.attention is not None:
            y = self.attention(self.attention_norm(x if second is None else second), place)
            x = x + self.attention_out_norm(y)
        if self.ff is None:
            return x, second
        y = self.ff_out_norm(self.ff(self.ff_norm(entering if self.parallel else x)))
        return (x + y, None) if second is None else (x, second + y)


class Ngrams(nn.Module):
    """Vectors for the last two and the last three tokens, by hash."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.bigram, self.trigram = rows, nn.Embedding(rows, width), nn.Embedding(rows, width)

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """tokens (B,T) at positions (B,T); what stands before a text counts as 0."""
        padded = F.pad(tokens, (2, 0))
        before, last = padded[:, :-2].masked_fill(at < 2, 0), padded[:, 1:-1].masked_fill(at < 1, 0)
        pair = last * 1_000_003 + tokens * 8_191
        result: Tensor = self.bigram(pair % self.rows) + self.trigram((before * 998_244_353 + pair * 31) % self.rows)
        return result
