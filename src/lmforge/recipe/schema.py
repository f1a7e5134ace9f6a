"""Everything a recipe may say, typed. TOML in, fully resolved TOML out.

    recipe = load_recipe(Path("recipes/laptop.toml"), overrides=["train.peak_lr=3e-4"])

A recipe's few real choices (texts, size, steps) are stated; the rest has defaults derived from them. A key that does
not exist stops the run and the nearest valid key is named. Every section is one pydantic model with `extra="forbid"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lmforge.progress import log
from lmforge.recipe.corpus import Corpus
from lmforge.recipe.evaluate import Evaluate
from lmforge.recipe.registry import COMPRESSION_STEPS
from lmforge.recipe.training import Finetune, Train
from lmforge.recipe.types import Positive, Section, Size
from lmforge.registry import Selected

AttentionKind = Literal["full", "window", "strided", "pooled", "sparse", "lsh", "linear"]


class Tokens(Section):
    """Documents → token shards."""

    vocab_size: Annotated[int, Field(ge=257, le=5_000_000)] = 4096  # tokens in all: special tokens, 256 bytes, merges
    context: Annotated[int, Field(ge=8)] = 256  # tokens of a row, which is what the model sees at once
    sample_bytes: Positive = 64_000_000  # text the vocabulary is learned from, spread evenly over the training split
    superwords: bool = False  # half of the vocabulary may cross spaces
    single_digits: bool = False  # each digit of a number is a token of its own; default: up to three together
    # memory for learning the vocabulary, in bytes or as "2GiB"; default: half of what is free
    max_ram: Size | None = None
    # chat tokens in the vocabulary; default: when there are conversations among the training documents
    chat: bool | None = None
    # processes that encode; default: one a core, fewer for little text. The files are the same
    workers: Positive | None = None
    # rows cut from one ring of text, or whole documents that do not see each other
    packing: Literal["ring", "best_fit"] = "ring"


class Model(Section):
    """The network. See `lmforge.model.gpt`."""

    # a model to go on from, with its network and vocabulary: a path, or PACKAGE:FILE of an installed package
    base: Annotated[str, Field(min_length=1)] | None = None

    layers: Positive = 6  # blocks, one after another
    d_model: Positive = 256  # width of the hidden states
    heads: Positive = 4  # attention heads of a layer; they divide d_model, unless head_dim says how wide they are
    # fewer than `heads` shares keys and values between groups of heads; default: heads
    kv_heads: Positive | None = None
    head_dim: Annotated[int, Field(ge=0)] = 0  # channels of a head; 0: d_model / heads
    d_ff: Positive | None = None  # units of the feed-forward part; default: 4 × d_model
    # of the feed-forward part; relu2: the square of relu; gelu_tanh: GPT-2's approximation of gelu; swiglu and geglu
    # multiply an activation with a second product
    activation: Literal["relu", "relu2", "gelu", "gelu_tanh", "swiglu", "geglu"] = "relu"
    # one kind, or a pattern of kinds repeated over the layers
    attention: AttentionKind | tuple[AttentionKind, ...] = "full"
    window: Positive = 256  # tokens: the band of window, strided and sparse
    stride: Positive = 1024  # every so many tokens one that strided and sparse see from anywhere later
    pool: Positive = 128  # tokens of a block that pooled and sparse see as one key and value
    pooling: Literal["mean", "max", "conv"] = "mean"  # how a block becomes one; conv is learned
    lsh_span: Positive = 64  # tokens of its bucket that a token sees, in each round
    lsh_rounds: Positive = 4  # times that tokens are hashed anew
    feature_map: Literal["elu", "learned"] = "elu"  # of linear attention
    # what is normalised before each part of a block: mean and variance, or the root mean square alone
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    # under the root of the norm; default: 1e-5, and 1e-6 for rmsnorm
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    # where norms stand: before a part of a block (pre), after it, before its result is added (post), or both
    norm_placement: Literal["pre", "post", "both"] = "pre"
    parallel_residual: bool = False  # both parts of a block read what enters it, instead of one after the other
    attention_scale: Annotated[float, Field(ge=0)] = 0.0  # what scores are multiplied by; 0: 1/√(channels of a head)
    embedding_scale: Annotated[float, Field(gt=0)] = 1.0  # what the embedding of tokens is multiplied by
    positions: Literal["rope", "learned", "none"] = "rope"  # how the network knows a token's place
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0  # the slowest pair turns once in about 2π times so many tokens
    # how RoPE reaches beyond the context it was trained at …
    rope_scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    rope_trained: Annotated[int, Field(ge=0)] = 0  # … which is this many tokens
    rope_factor: Annotated[float, Field(ge=0)] = 0.0  # how much RoPE is stretched; 0: context / rope_trained
    # of llama3: pairs that turn less often than this within rope_trained are stretched whole …
    rope_low: Annotated[float, Field(gt=0)] = 1.0
    # … and those that turn more often than this are not
    rope_high: Annotated[float, Field(gt=0)] = 4.0
    # rope_base of window layers, whose RoPE is then not stretched; 0: as in the other layers
    rope_local_base: Annotated[float, Field(ge=0)] = 0.0
    rotary_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # the share of a head's channels that RoPE turns
    biases: bool = False  # whether matrices have them
    qkv_biases: bool | None = None  # the same of queries, keys and values; default: as biases
    out_biases: bool | None = None  # the same of attention's output matrix; default: as biases
    norm_biases: bool | None = None  # the same of layernorms; default: as biases
    qk_norm: bool = False  # queries and keys are normalised before their product, each head by itself …
    qk_norm_full: bool = False  # … or all heads together
    ngram_rows: Annotated[int, Field(ge=0)] = 0  # rows of the hashed n-gram embedding tables; 0: none
    tied: bool = True  # the output matrix is the embedding
    # reversible: activations are made again from the last ones, whatever the depth
    residual: Literal["plain", "reversible"] = "plain"
    # keep what enters each block (unless reversible) and what attention mixed; make the rest again in the backward pass
    recompute: bool = False
    ahead: Annotated[int, Field(ge=0)] = 0  # further tokens predicted in training
    experts: Annotated[int, Field(ge=0)] = 0  # networks that share a layer's d_ff; 0: one
    experts_active: Positive = 2  # of which each token uses so many
    experts_shared: Annotated[int, Field(ge=0)] = 0  # and so many more of the same width, used by all
    balance: Literal["bias", "loss", "none"] = "bias"  # what keeps the experts' load even
    image_size: Annotated[int, Field(ge=0)] = 0  # pixels a side; 0: no images
    image_patch: Annotated[int, Field(ge=0)] = 0  # pixels a side of the patch that becomes one token
    image_channels: Positive = 3  # values of a pixel
    # what makes vectors of patches: their pixels alone (linear), or convolutions over the whole image, each of which
    # halves it (image_patch is then a power of two)
    image_stem: Literal["linear", "convolutions"] = "linear"

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.d_model % self.heads and not self.head_dim:
            raise ValueError(f"d_model {self.d_model} is not divisible by heads {self.heads}; give head_dim")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        width = self.head_dim or self.d_model // self.heads
        turned = int(width * self.rotary_fraction)
        if self.positions == "rope" and turned % 2:
            raise ValueError(
                f"rope needs an even head width; d_model/heads is {width}, of which {turned} channels turn"
            )
        return self


class Parallel(Section):
    """How the network is laid over processes (torchrun starts them): the product of the six numbers is how many there
    are."""

    # copies of the network, each with its own rows of a batch; default: as many as the other numbers leave processes
    data: Positive | None = None
    # processes that share a copy's weights, gradients and optimizer state, each with its own rows (FSDP)
    shard: Positive = 1
    tensor: Positive = 1  # processes that share every matrix, and the tokens between them
    pipeline: Positive = 1  # processes that share the layers
    expert: Positive = 1  # processes that share the experts of a layer, each with its own rows
    context: Positive = 1  # processes that share the tokens of a row
    # of pipeline: gpipe, 1f1b, interleaved; zero-bubble (interleaved) and zbv put gradients of weights off
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble", "zbv"] = "1f1b"
    pipeline_stages: Positive | None = None  # stages of a process; default: 1, or 2 where the schedule has several
    pipeline_layers: tuple[int, ...] = ()  # layers of each stage; default: such that the costliest costs least
    # of shard: let a block's weights go after its forward pass and gather them again in the backward pass
    reshard: bool = True
    gather: Literal["fp32", "bf16"] = "fp32"  # of shard: the numbers in which weights travel; gradients travel in fp32
    limit: Annotated[float, Field(gt=0)] = 300.0  # seconds that processes which compute together wait for each other
    # a name registered in lmforge.parallel.layout.LAYOUTS, or auto: the planner chooses the numbers that are not
    # stated; default: data-parallel where only `data` says something, else mesh
    layout: str | None = None


class CompressStep(Section):
    """One step of compression: `method`, and that method's own keys. Each method registers its section."""

    method: str  # which method


class QuantizeStep(CompressStep):
    """8-bit weights and activations, or weights alone in groups of few bits."""

    method: Literal["quantize"] = "quantize"  # integers of few bits
    # w8a8: 8-bit integers multiplied as such; weights: stored in groups of few bits
    kind: Literal["w8a8", "weights"] = "w8a8"
    cache_bits: Literal[8, 32] = 32  # of the keys and values that decoding keeps
    # of w8a8, how far the range of a layer's inputs goes: to the largest calibration input (each token's own where that
    # rounds too coarsely), to a percentile of them, to where the squared error is least, or always to each token's own
    activations: Literal["max", "percentile", "mse", "token"] = "max"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99  # of the inputs' sizes
    scales: Literal["max", "mse"] = "max"  # of w8a8: a row's scale by its largest weight, or by the least squared error
    outliers: Annotated[int, Field(ge=0, le=64)] = 0  # of w8a8: columns with the largest inputs that stay in fp32
    # the rest is of kind = "weights"
    bits: Literal[3, 4, 5, 6, 8] = 4
    group: Annotated[int, Field(ge=8)] = 32  # neighbours in a row that share a scale
    # nearest: each by itself; feedback: what rounding a column missed, the next ones make up for
    rounding: Literal["nearest", "feedback"] = "feedback"
    damping: Annotated[float, Field(gt=0)] = 0.01  # of feedback: added to the diagonal, as a share of its mean
    scaled: bool = False  # channels with large inputs are rounded more finely
    bytes: Size | None = None  # bits layer by layer, so that the file's tensors fit; bits is then not used
    # kernel: multiplied as integers; load: in floating point, dense once in memory; fly: dense in each product
    unpack: Literal["kernel", "load", "fly"] = "kernel"

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> QuantizeStep:
        both, of_w8a8 = {"method", "kind", "cache_bits"}, {"activations", "percentile", "scales", "outliers"}
        other = set(QuantizeStep.model_fields) - both - of_w8a8 if self.kind == "w8a8" else of_w8a8
        for name in sorted(other):
            if getattr(self, name) != QuantizeStep.model_fields[name].default:
                kind = "weights" if self.kind == "w8a8" else "w8a8"
                raise ValueError(f"{name} is of kind = '{kind}'; add that, or leave {name} out")
        if self.percentile != QuantizeStep.model_fields["percentile"].default and self.activations != "percentile":
            raise ValueError("percentile is of activations = 'percentile'; add that, or leave percentile out")
        return self


# the default needs it before any method is imported
COMPRESSION_STEPS.register("quantize", QuantizeStep)


class Budget(Section):
    """What a compressed model may cost."""

    # largest allowed rise of bits per byte, as a share (0.005 is 0.5%)
    loss: Annotated[float, Field(gt=0)] | None = None
    bytes: Size | None = None  # of its tensors' file
    macs: Size | None = None  # multiply-accumulates of a token by matrices; "2M" is two million


def _loss_alone(value: Any) -> Any:
    """A number, as before there were other budgets."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        log(f"compress.budget = {value}: taken as {{loss = {value}}}; write that, the number alone will go")
        return {"loss": value}
    return value


class Compress(Section):
    """Model → smaller model, one method after another."""

    # methods in order, each given the model that the one before it left
    steps: tuple[Annotated[CompressStep, Selected(COMPRESSION_STEPS, "method", default="quantize")], ...] = (
        QuantizeStep(),
    )
    # rows of training text that methods look at, which for a large network are most of the work; default: 32
    calibration_rows: Positive | None = None
    # what the result may cost: {loss = 0.005, bytes = "60MB", macs = "20M"}
    budget: Annotated[Budget | None, BeforeValidator(_loss_alone)] = None


class Serve(Section):
    """Model → answers."""

    host: str = "127.0.0.1"  # address that the server listens on
    port: Annotated[int, Field(ge=0, le=65535)] = 8000  # its port; 0: any that is free
    hosts: tuple[Annotated[str, Field(pattern=r"^[^/:\s]+$")], ...] = ()  # names it answers to, beside local ones
    batch_invariant: bool = True  # the same request gets the same answer whoever shares its batch


class Recipe(Section):
    """One model's whole life."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "model"  # of the model and its run
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # of everything that is drawn at random
    run_dir: Path | None = None  # where the run's files go; default: runs/NAME
    corpus: Corpus = Corpus()
    tokens: Tokens = Tokens()
    model: Model = Model()
    parallel: Parallel = Parallel()
    train: Train = Train()
    compress: Compress = Compress()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()
    finetune: Finetune | None = None  # makes a model out of another one, by examples

    @model_validator(mode="after")
    def _contexts_divide(self) -> Recipe:
        for _, context in self.train.context_schedule:
            if self.tokens.context % context:
                whole = self.tokens.context
                raise ValueError(
                    f"train.context_schedule: {context} does not divide tokens.context {whole}, of whose rows it cuts "
                    "parts"
                )
        return self

    @model_validator(mode="after")
    def _no_steps_with_a_base_alone(self) -> Recipe:
        if self.train.steps == 0 and self.model.base is None:
            raise ValueError("train.steps: 0 leaves a network untrained; only a model of model.base is one without")
        if self.model.base is not None and self.finetune is not None:
            raise ValueError("model.base: a recipe with [finetune] goes on from finetune.base; leave model.base out")
        return self

    @field_validator("run_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @property
    def directory(self) -> Path:
        """Where the run's files go."""
        return self.run_dir or Path("runs") / self.name
