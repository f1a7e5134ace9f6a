"""A language model made by lmforge, for `transformers`: this file is all that is needed to run it.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Plain torch, every kind of layer that lmforge trains; tensors have lmforge's own names. Text before the new token is read
again at each step (no cache of `transformers`); `run` takes and gives keys and values where every layer's attention can
be said by a mask. Shapes: B rows, T tokens, S keys, H heads of width E, D width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

MASKABLE = {"full", "window", "strided"}
EXPERT_SCALE = 1.5  # of what experts give, with weights that sum to how many they are
ROUTER_SCALE = 3.0  # of the router's logits, over √D
CHOICE_SCALE = 4.0  # of the bias on the choice
ITSELF = -100.0  # added to a token's score of itself in hash buckets (Kitaev et al. 2020, appendix A)


class LmforgeConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of the network, in `architecture`, by the names that recipes of lmforge use."""

    model_type = "lmforge"

    def __init__(self, architecture: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shape = self.architecture = dict(architecture or {})
        own = {
            "vocab_size": shape.get("vocab_size", 0),
            "hidden_size": shape.get("d_model", 0),
            "num_hidden_layers": shape.get("layers", 0),
            "max_position_embeddings": shape.get("context", 0),
            "num_attention_heads": shape.get("heads", 1),
            "num_key_value_heads": shape.get("kv_heads", 1),
            "use_cache": False,
        }
        for name, value in own.items():
            setattr(self, name, value)
        others = {name: value for name, value in kwargs.items() if name not in own}
        super().__init__(**{"tie_word_embeddings": shape.get("tied", True), **others})


class Shape:
    """`architecture` as attributes, and what follows from it for each layer."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        self.__dict__.update(architecture)
        self.head_width = self.d_model // self.heads

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

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
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and self.layernorm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.layernorm:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def frequencies(shape: Shape) -> tuple[Tensor, float]:
    """RoPE's angles for one position (E/2), and the length that a rotation gives (Su et al. 2021, eq. 15; Peng et al.
    2023)."""
    half = shape.head_width // 2
    steps = torch.arange(half, dtype=torch.float64) / half
    stretch = shape.context / shape.rope_trained if shape.rope_scaling != "none" else 1.0
    theta, size = shape.rope_base**-steps, 1.0
    if shape.rope_scaling == "linear":
        theta = theta / stretch
    elif shape.rope_scaling == "ntk":
        theta = (shape.rope_base * stretch ** (half / max(half - 1, 1))) ** -steps
    elif shape.rope_scaling == "yarn":
        keep = ((shape.rope_trained * theta / (2 * math.pi) - 1) / (32 - 1)).clamp(0, 1)
        theta = theta * (keep + (1 - keep) / stretch)
        size = 0.1 * math.log(stretch) + 1
    return theta, size


def rotate(x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    """x (B,H,T,E), neighbouring pairs turned by (cos, sin), each (B,1,T,E/2)."""
    if turns is None:
        return x
    cos, sin = turns
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Place:
    """Where the tokens of one pass stand: q_at (B,T), k_at (B,S) in the text; seen (B,T,S) what is no padding and not
    later."""

    def __init__(self, mask: Tensor, length: int, shape: Shape) -> None:
        self.shape = shape
        self.k_at = (mask.long().cumsum(1) - 1).clamp(min=0)
        index = torch.arange(mask.shape[1], device=mask.device)
        query = torch.arange(length, device=mask.device) + (mask.shape[1] - length)
        self.q_at = self.k_at.gather(1, query.expand(mask.shape[0], -1))
        own = query[:, None] == index  # a padded query sees itself, so that no row of scores is empty
        self.seen = ((query[:, None] >= index) & (mask[:, None] > 0)) | own

    def turns(self, at: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rotations of positions (B,T)."""
        if self.shape.positions != "rope":
            return None
        theta, size = frequencies(self.shape)
        angles = at[:, None, :, None].double() * theta.to(at.device)
        return (angles.cos() * size).float(), (angles.sin() * size).float()

    def visible(self, window: int | None, stride: int | None) -> Tensor:
        """(B,1,T,S): a band of keys and, with a stride, every so many before it."""
        seen = self.seen
        if window is not None:
            near = self.q_at[:, :, None] - self.k_at[:, None] < window
            seen = seen & (near | (self.k_at % stride == 0)[:, None] if stride else near)
        return seen[:, None]


class Mixer(nn.Module):
    """What a kind of attention learns, beside the projections."""

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
        self.qkv = linear(shape.d_model, outputs, shape.biases, widths.get("qkv_rank", 0))
        self.out = linear(widths["heads"] * E, shape.d_model, shape.biases, widths.get("out_rank", 0))
        self.q_norm = Norm(E, shape, False) if shape.qk_norm else None
        self.k_norm = Norm(E, shape, False) if shape.qk_norm and not self.shared else None
        self.mixer = Mixer(shape, layer)

    def forward(self, x: Tensor, place: Place, past: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        parts = self.qkv(x).unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2)
        q, *rest = parts.split((self.groups * self.kv_heads, *[self.kv_heads] * (1 if self.shared else 2)), 1)
        q = q if self.q_norm is None else self.q_norm(q)
        k = q if self.shared else rest[0] if self.k_norm is None else self.k_norm(rest[0])
        v, turns, plain = rest[-1], place.turns(place.q_at), k
        q, k = rotate(q, turns), rotate(k, turns)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        if self.kind == "linear":
            y = self.linear(q, k, v)
        elif self.kind == "lsh":
            y = self.buckets(q, v)
        else:
            y = self.softmax(q, k, v, plain, place)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)

    def softmax(self, q: Tensor, k: Tensor, v: Tensor, plain: Tensor, place: Place) -> Tensor:
        """A band of keys, strided ones before it, and one pooled key for each complete block that has left it."""
        shape, kind = self.shape, self.kind
        window = {"full": None, "pooled": shape.pool}.get(kind, shape.window)
        seen = place.visible(window, shape.stride if kind in ("strided", "sparse") else None)
        if kind in ("pooled", "sparse") and q.shape[2] >= shape.pool:
            first = torch.arange(q.shape[2] // shape.pool, device=q.device) * shape.pool
            pooled_k = rotate(self.pooled(plain, "pool_keys"), place.turns((first + shape.pool // 2)[None]))
            k, v = torch.cat((k, pooled_k), 2), torch.cat((v, self.pooled(v, "pool_values")), 2)
            far = place.q_at[:, :, None] >= first + max(window, shape.pool)
            seen = torch.cat((seen, far[:, None]), 3)
        k, v = (x.repeat_interleave(self.groups, 1) if self.groups > 1 else x for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    def pooled(self, x: Tensor, name: str) -> Tensor:
        """(B,H,T,E) → one for each complete block (B,H,T//pool,E)."""
        pool = self.shape.pool
        blocks = x[:, :, : x.shape[2] // pool * pool].unflatten(2, (-1, pool))
        if self.shape.pooling == "conv":
            return (blocks * getattr(self.mixer, name).transpose(0, 1)[:, None]).sum(3)
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
        wide = units * (2 if self.activation == "swiglu" else 1)
        self.up = linear(shape.d_model, wide, shape.biases, widths.get("up_rank", 0))
        self.down = linear(units, shape.d_model, shape.biases, widths.get("down_rank", 0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, -1)
            hidden = F.silu(gate) * hidden
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
    """Attention and feed-forward, each after a norm; either may be missing."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        widths = shape.layer(layer)
        heads, units = widths["heads"], widths["d_ff"]
        self.attention_norm = Norm(shape.d_model, shape, shape.biases) if heads else None
        self.attention = Attention(shape, layer) if heads else None
        self.ff_norm = Norm(shape.d_model, shape, shape.biases) if units else None
        experts = widths.get("experts", 0)
        self.ff = (Experts(shape, widths) if experts else FeedForward(shape, units, widths)) if units else None

    def forward(self, x: Tensor, second: Tensor | None, place: Place, past: Any) -> tuple[Tensor, Tensor | None, Any]:
        """One stream, or with `second` the two of reversible blocks."""
        present = None
        if self.attention is not None:
            y, present = self.attention(self.attention_norm(x if second is None else second), place, past)
            x = x + y
        y = 0 if self.ff is None else self.ff(self.ff_norm(x))
        return (x + y, None, present) if second is None else (x, second + y, present)


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


class LmforgeForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The network with its head."""

    config_class = LmforgeConfig
    base_model_prefix = ""
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self, config: LmforgeConfig) -> None:
        super().__init__(config)
        shape = self.shape = Shape(config.architecture)
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
        self.ngrams = Ngrams(shape.ngram_rows, shape.d_model) if shape.ngram_rows else None
        learned = shape.positions == "learned"
        self.learned_positions = nn.Embedding(shape.context, shape.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = Norm(shape.d_model, shape, shape.biases)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from the file."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        """The whole text at each step."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def run(self, tokens: Tensor, mask: Tensor, past: Any = None) -> tuple[Tensor, list[Any]]:
        """tokens (B,T), mask (B,S) of keys with those of `past` → logits (B,T,V), and keys and values of each layer."""
        place, presents = Place(mask, tokens.shape[1], self.shape), []
        x = self.embed(tokens)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, place.q_at)
        if self.learned_positions is not None:
            x = x + self.learned_positions(place.q_at)
        second = x if self.shape.residual == "reversible" else None
        for layer, block in enumerate(self.blocks):
            x, second, present = block(x, second, place, None if past is None else past[layer])
            presents.append(present)
        x = x if second is None else (x + second) / 2
        return self.head(self.norm(x)), presents

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """input_ids (B,T) → logits (B,T,V), and with labels the mean loss of the next tokens (−100: not counted)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        padded = attention_mask is not None and not bool(mask.all())
        if padded and any(self.shape.kind(layer) not in MASKABLE for layer in range(self.shape.layers)):
            logits = self.embed.weight.new_zeros(*input_ids.shape, self.shape.vocab_size)
            for row, kept in enumerate(mask > 0):  # blocks and buckets count tokens: each text by itself
                logits[row, kept] = self.run(input_ids[row, kept][None], mask[row, kept][None])[0][0]
        else:
            logits = self.run(input_ids, mask)[0]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
