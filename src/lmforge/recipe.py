"""Everything a recipe may say, typed. TOML in, fully resolved TOML out.

    recipe = load_recipe(Path("recipes/laptop.toml"), overrides=["train.peak_lr=3e-4"])

A recipe's few real choices (texts, size, steps) are stated; the rest has defaults derived from them. A key that does
not exist stops the run and the nearest valid key is named. Every section is one pydantic model with `extra="forbid"`.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmforge.errors import InputError

SourceKind = Literal[
    "python-library", "folder", "jsonl", "parquet", "hub", "warc", "html", "mediawiki", "code", "parallel", "procedural"
]
# kinds of which some part is always damaged
SKIPPING: frozenset[SourceKind] = frozenset(("hub", "warc", "html", "code"))
Genre = Literal["books", "encyclopedia", "news", "web", "technical", "code", "stories", "unknown"]
ProceduralTask = Literal[
    "sum",
    "expression",
    "division",
    "sequence",
    "arithmetic_words",
    "algebra_words",
    "copy",
    "reverse",
    "spell",
    "sort",
    "alphabet",
    "extreme",
    "count",
    "letters",
    "distinct",
    "brackets",
    "close",
    "program",
]
AttentionKind = Literal["full", "window", "strided", "pooled", "sparse", "lsh", "linear"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(gt=0)]


def _in_bytes(value: Any) -> Any:
    """ "2GiB", "500 MB", "1.5e9" → bytes; anything else as it is, for pydantic to judge."""
    found = (
        re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*(?:([kKMGT])(i?)B?|B)?\s*", value)
        if isinstance(value, str)
        else None
    )
    if not found:
        return value
    unit = 0 if found[2] is None else " kMGT".index(found[2].replace("K", "k"))
    return round(float(found[1]) * (1024 if found[3] else 1000) ** unit)


Size = Annotated[int, Field(gt=0), BeforeValidator(_in_bytes)]
Level = Annotated[int, Field(ge=1, le=5)]


# A number, or a curriculum: [share of training, weight] pairs, each weight from its share on.
Curriculum = Weight | tuple[tuple[Share, Annotated[float, Field(ge=0)]], ...]


def check_weight(weight: Curriculum) -> None:
    """Refuse a curriculum that is out of order or gives nothing."""
    if isinstance(weight, tuple) and not (_in_order(weight) and any(value for _, value in weight)):
        raise ValueError(
            "a weight that changes is a list of [share of training, weight] pairs: the first share 0, each later "
            "one larger, some weight above 0; for example [[0, 1.0], [0.8, 0.2]]"
        )


def _in_order(schedule: Sequence[tuple[float, float]]) -> bool:
    shares = [share for share, _ in schedule]
    return bool(shares) and shares[0] == 0 and shares == sorted(set(shares))


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are checked, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where documents come from."""

    kind: SourceKind
    path: Path | None = None
    genre: Genre = "unknown"
    # a number: how often its documents stand in the corpus; a curriculum: how often the loader draws them
    weight: Curriculum = 1.0
    text_field: str = "text"
    # a broken record or file; default: refuse, but skip and count hub, warc, html, code
    damaged: Literal["refuse", "skip"] | None = None
    config: str | None = None  # hub: which of the data set's configurations
    split: str = "train"  # hub: which of its splits
    revision: str | None = None  # hub: branch, tag or commit
    join: Literal["repository"] | None = None  # code: the files of each folder directly below the path in one document
    # parallel: the two fields of a line, each a sentence in the language it is named after
    languages: tuple[str, str] | None = None
    tasks: tuple[ProceduralTask, ...] | None = None  # procedural: which, in equal parts; default: all
    documents: Positive | None = None  # procedural: how many; default: 10,000
    levels: tuple[Level, Level] | None = None  # procedural: the least and the greatest difficulty; default: 1 to 3
    problems: Positive | None = None  # procedural: in a document; default: 4

    @model_validator(mode="after")
    def _path_fits_kind(self) -> Source:
        if self.kind == "python-library" and self.path is not None:
            raise ValueError("kind 'python-library' reads the running Python's own library and takes no path")
        if self.kind == "procedural" and self.path is not None:
            raise ValueError("kind 'procedural' makes its documents and takes no path")
        if self.kind not in ("python-library", "procedural") and self.path is None:
            raise ValueError(f"kind '{self.kind}' needs a path")
        if self.kind == "parallel" and self.languages is None:
            raise ValueError('kind \'parallel\' needs languages, such as ["en", "de"]')
        if self.levels and self.levels[0] > self.levels[1]:
            raise ValueError("levels: the greatest comes second")
        return self

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Source:
        for kind, keys in (
            ("hub", ("config", "split", "revision")),
            ("code", ("join",)),
            ("parallel", ("languages",)),
            ("procedural", ("tasks", "documents", "levels", "problems")),
        ):
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if self.kind != kind and given:
                raise ValueError(f"{given[0]} is a key of kind '{kind}', not of '{self.kind}'")
        return self

    @model_validator(mode="after")
    def _curriculum_is_in_order(self) -> Source:
        check_weight(self.weight)
        return self

    @property
    def copies(self) -> float:
        """How often each document stands in the corpus: a plain weight; 1 where a curriculum leaves the weighing to the
        loader."""
        return self.weight if isinstance(self.weight, float) else 1.0

    @property
    def curriculum(self) -> tuple[tuple[float, float], ...]:
        """(share of training from which it holds, weight) pairs for the loader; a plain weight is already in the
        corpus, so 1 here."""
        return self.weight if isinstance(self.weight, tuple) else ((0.0, 1.0),)

    @property
    def skips_damage(self) -> bool:
        """Whether damaged input is skipped and counted rather than refused."""
        return self.damaged == "skip" if self.damaged else self.kind in SKIPPING


RuleFamily = Literal["boilerplate", "punctuation", "gopher", "repetition", "c4", "fineweb"]
PrivateKind = Literal["email", "ip", "phone", "card"]


class Perplexity(Section):
    """Documents unlike a reference are left out, as an n-gram model of bytes measures it."""

    reference: Path  # texts of the wanted kind: a folder, a text, JSONL or Parquet file
    # worse than this share of the reference's held-out documents is too far
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    most_bits_per_byte: Annotated[float, Field(gt=0)] | None = None  # instead of the percentile
    order: Annotated[int, Field(ge=1, le=8)] = 5


class Quality(Section):
    """Documents that a classifier finds more like the bad examples than the good ones are left out."""

    good: Path  # examples: a folder, a text, JSONL or Parquet file
    bad: Path
    threshold: Share = 0.5  # least probability of being good
    model: Path | None = None  # where the trained classifier is kept (.npz); default: trained anew in each process


class Synthesis(Section):
    """Documents made from those of the training split; `share` of the training text is to be of this kind."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05


class Augment(Synthesis):
    """Copies with words changed at these rates (Wei and Zou 2019)."""

    method: Literal["augment"]
    synonym: Share = 0.1
    swap: Share = 0.1
    delete: Share = 0.1
    insert: Share = 0.1


class Noise(Synthesis):
    """Passages to be restored: the input is shown, the loss counts on what is missing."""

    method: Literal["noise"]
    objective: Literal[
        "mixture", "span_mask", "token_mask", "infill", "delete", "permute", "rotate", "characters", "prefix",
    ] = "mixture"  # fmt: skip
    passage_chars: Positive = 400  # input and target together should fit tokens.context


class BackTranslation(Synthesis):
    """Paraphrases by way of another language and back."""

    method: Literal["back_translation"]
    model: Path | None = None  # a run that learned both directions from a `parallel` source
    # instead: two Hub models, there and back (needs transformers, and the models on this machine)
    hub: tuple[str, str] | None = None
    language: str = "en"
    through: str = "de"
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0  # above 0 the words are drawn: more variety, more mistakes

    @model_validator(mode="after")
    def _one_model(self) -> BackTranslation:
        if (self.model is None) == (self.hub is None):
            raise ValueError("back_translation needs model = RUN, or hub = [THERE, BACK], and not both")
        return self


SynthesisStep = Annotated[Augment | Noise | BackTranslation, Field(discriminator="method")]


class Slurm(Section):
    """How the corpus stage's jobs are asked for on a Slurm cluster."""

    partition: str
    time: str = "24:00:00"  # a job's limit
    memory_gb: Positive = 4
    max_array: Positive = 1000  # elements of an array job that the cluster takes
    qos: str = "normal"
    sbatch: dict[str, str] = {}  # further options of sbatch, such as account


class Corpus(Section):
    """Raw text → clean documents."""

    sources: tuple[Source, ...] = (Source(kind="python-library", genre="code"),)
    # share of documents kept out of training, chosen by document hash
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    min_chars: Positive = 64
    max_chars: Positive = 1_000_000
    max_duplicate_lines: Share = 0.6  # share of a document's lines that repeat an earlier line of it
    max_duplicate_ngrams: Share = 0.6  # share of a document's characters inside repeated 10-word runs
    # Rules of published corpora for prose (web, news, encyclopedia, books, stories; some for the web alone); see
    # corpus/clean/quality.py.
    rules: tuple[RuleFamily, ...] = ("boilerplate", "gopher", "repetition", "c4", "fineweb")
    languages: tuple[str, ...] = ()  # ISO 639-1 codes of the languages kept, code aside; default: any
    # replaced by what they are, code and technical text aside
    mask_private: tuple[PrivateKind, ...] = ("email", "ip", "phone", "card")
    toxic_words: Path | None = None  # a list, one word or phrase a line; documents with one are left out
    perplexity: Perplexity | None = None
    quality: Quality | None = None
    # text sampled for the slower figures of statistics.json; 0: none of these
    analyse_bytes: Annotated[int, Field(ge=0)] = 4_000_000
    synthesis: tuple[SynthesisStep, ...] = ()
    # the most of the training text, in bytes, that made documents may be
    synthetic_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    # documents that share at least this share of their words, in order, with a kept one go; 1: none do
    near_duplicates: Share = 0.75
    # lines (not of code) that stand in at least so many documents go; 0: none do
    repeated_lines: Annotated[int, Field(ge=0)] = 10
    decontaminate: tuple[Path, ...] = ()  # benchmark texts to keep out: JSONL or text files, folders, patterns
    executor: Literal["local", "slurm", "ray"] = "local"
    # processes, or tasks at once on a cluster; default: the cores, but one where that is quicker
    workers: Positive | None = None
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _shares_fit(self) -> Corpus:
        asked = sum(step.share for step in self.synthesis)
        if asked > self.synthetic_share + 1e-9:
            raise ValueError(
                f"the shares of synthesis add up to {asked:g}, more than synthetic_share {self.synthetic_share:g}; "
                "lower them or raise it"
            )
        return self

    @model_validator(mode="after")
    def _executor_is_described(self) -> Corpus:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor 'slurm' needs a [corpus.slurm] section with the partition")
        return self


class Tokens(Section):
    """Documents → token shards."""

    vocab_size: Annotated[int, Field(ge=257, le=5_000_000)] = 4096
    context: Annotated[int, Field(ge=8)] = 256
    sample_bytes: Positive = 64_000_000  # text the vocabulary is learned from, spread evenly over the training split
    superwords: bool = False  # half of the vocabulary may cross spaces
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

    layers: Positive = 6
    d_model: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = None  # fewer than `heads` shares keys and values between groups of heads
    d_ff: Positive | None = None  # default: 4 × d_model
    # gelu_tanh: GPT-2's approximation of it
    activation: Literal["relu", "relu2", "gelu", "gelu_tanh", "swiglu"] = "relu"
    # one kind, or a pattern of kinds repeated over the layers
    attention: AttentionKind | tuple[AttentionKind, ...] = "full"
    window: Positive = 256  # tokens: the band of window, strided and sparse
    stride: Positive = 1024  # every so many tokens one that strided and sparse see from anywhere later
    pool: Positive = 128  # tokens of a block that pooled and sparse see as one key and value
    pooling: Literal["mean", "max", "conv"] = "mean"  # how a block becomes one; conv is learned
    lsh_span: Positive = 64  # tokens of its bucket that a token sees, in each round
    lsh_rounds: Positive = 4
    feature_map: Literal["elu", "learned"] = "elu"  # of linear attention
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    # under the root of the norm; default: 1e-5, and 1e-6 for rmsnorm
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    positions: Literal["rope", "learned", "none"] = "rope"
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0  # the slowest pair turns once in about 2π times so many tokens
    # how RoPE reaches beyond the context it was trained at …
    rope_scaling: Literal["none", "linear", "ntk", "yarn"] = "none"
    rope_trained: Annotated[int, Field(ge=0)] = 0  # … which is this many tokens
    biases: bool = False
    qk_norm: bool = False
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
    image_channels: Positive = 3

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.positions == "rope" and (self.d_model // self.heads) % 2:
            raise ValueError(f"rope needs an even head width; d_model/heads is {self.d_model // self.heads}")
        return self


class Parallel(Section):
    """How the network is laid over processes (torchrun starts them)."""

    data: Positive | None = None  # default: every process there is


class Train(Section):
    """Shards + network → checkpoints."""

    steps: Positive | None = None
    tokens: Positive | None = None  # instead of steps
    batch_tokens: Positive = 8192
    # [share of training, batch_tokens] pairs, where it is not one size throughout
    batch_schedule: tuple[tuple[Share, Positive], ...] = ()
    # [share of training, context] pairs: shorter rows, as many tokens a batch
    context_schedule: tuple[tuple[Share, Positive], ...] = ()
    mixture: dict[Genre, Curriculum] = {}  # how often texts of a genre are drawn, where not equally often
    micro_batch_tokens: Positive | None = None  # default: what measures fastest and fits
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    optimizer_state: Literal["fp32", "8bit"] = "fp32"  # 8bit: a quarter of the memory (AdamW and Muon)
    # large freed blocks go back to the system: with long texts and recompute half the peak, 1.4 times the time
    return_memory: bool = False
    peak_lr: Annotated[float, Field(gt=0)] = 6e-4
    matrix_lr: Annotated[float, Field(gt=0)] = 0.02  # Muon's rate, for matrices; peak_lr serves the rest
    # d_model that the rates were tuned at: rates, initialisation and output are scaled from it (µP)
    base_width: Positive | None = None
    # of the logits, to be tuned at base_width along with the rates
    output_multiplier: Annotated[float, Field(gt=0)] = 1.0
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: stable at the peak, falling over the last fifth of the run
    final_lr: Share = 0.1  # the schedule ends at this share of the peak
    warmup: Annotated[int, Field(ge=0)] | None = None  # default: 4% of the steps, at most 2,000
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    weight_decay_schedule: Literal["constant", "linear"] = "constant"  # linear: falls to 0 over the run
    betas: tuple[float, float] = (0.9, 0.95)
    # weight of (log Σ exp(logits))²; 1e-4 where training in half precision drifts
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    # auto: the fastest safe one, measured at start-up on a CPU
    precision: Literal["fp32", "bf16", "fp16", "fp8", "auto"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: measured at start-up, its compile time counted
    threads: Positive | None = None  # default: measured at start-up
    validate_every: Positive | None = None  # steps; default: a tenth of the run
    validate_tokens: Positive = 32_768
    checkpoint_every: Positive | None = None  # steps; default: a fifth of the run
    keep: Positive = 2  # newest checkpoints kept, beside the best
    store: str | None = None  # an object store's address that each checkpoint is copied to (s3://bucket/run)
    # after these a checkpoint is saved and the command ends, to be run again
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    tensorboard: bool = False  # metrics in TensorBoard's file format too, in train/tensorboard
    # steps recorded operation by operation, in train/profile, once the run has settled
    profile: Annotated[int, Field(ge=0)] = 0
    # weights kept near the end, to average and to choose from; 0: the best checkpoint alone
    ensemble: Annotated[int, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _schedules_are_in_order(self) -> Train:
        for weight in self.mixture.values():
            check_weight(weight)
        for name, schedule in (("context", self.context_schedule), ("batch", self.batch_schedule)):
            if schedule and not _in_order(schedule):
                raise ValueError(
                    f"{name}_schedule is a list of [share of training, tokens] pairs: the first share 0, each later "
                    "one larger"
                )
        return self

    @model_validator(mode="after")
    def _state_fits_optimizer(self) -> Train:
        if self.optimizer == "sgd" and self.optimizer_state == "8bit":
            raise ValueError("optimizer 'sgd' keeps its state in fp32; use optimizer_state = 'fp32', or adamw or muon")
        for key, given in (
            ("base_width", self.base_width is not None),
            ("output_multiplier", self.output_multiplier != 1),
        ):
            if self.optimizer == "sgd" and given:
                raise ValueError(f"{key} scales what adamw and muon do; optimizer 'sgd' would need other factors")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("give steps or tokens, not both")
        return self


LoraTarget = Literal["attention.qkv", "attention.out", "ff.up", "ff.down"]


class Lora(Section):
    """Products of two narrow matrices, learned beside frozen matrices of every layer (Hu et al. 2021)."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] | None = None  # the product counts alpha / rank times; default: twice the rank
    # matrices of each layer that get one
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = get_args(LoraTarget)

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return (self.alpha or 2 * self.rank) / self.rank


class Finetune(Section):
    """A trained model and examples → a model of these examples. Takes the place of the corpus's sources, the vocabulary
    and [model]."""

    base: Path  # a run, a checkpoint or a model (not a compressed one)
    task: Literal["chat", "classify", "span"]
    train: Path  # examples, a JSON object a line (plain, gzip or Zstandard)
    test: Path | None = None  # examples that are scored at the end; default: a part of `train`, as corpus.holdout says
    # classify: where its text stands, or a pair's two texts
    fields: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    label: str = "label"  # classify: where its label stands
    labels: dict[str, str] = {}  # classify: a label as the file has it → the word to answer with; default: as it is
    instruction: str = ""  # a line before each question
    long: Literal["refuse", "skip"] = "refuse"  # what is done with a training example longer than tokens.context
    # times that each example is seen, where train.steps and train.tokens are not given
    epochs: Annotated[float, Field(gt=0)] = 3.0
    lora: Lora | None = None  # default: every weight is trained


class QuantizeStep(Section):
    """8-bit weights and activations."""

    method: Literal["quantize"] = "quantize"


class Compress(Section):
    """Model → smaller model, one method after another."""

    steps: tuple[QuantizeStep, ...] = (QuantizeStep(),)
    # largest allowed rise of bits per byte, as a share (0.005 is 0.5%)
    budget: Annotated[float, Field(gt=0)] | None = None


TaskName = Literal["bits_per_byte", "completions_parse", "generation_speed", "kneser_ney", "answers", "passkey"]


class Evaluate(Section):
    """Model → scores."""

    tasks: tuple[TaskName, ...] = ("bits_per_byte", "completions_parse", "generation_speed", "kneser_ney")
    items: Positive = 64  # items of each generative task
    max_tokens: Positive | None = None  # tokens of the held-out text scored; default: all


class Serve(Section):
    """Model → answers."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


class Recipe(Section):
    """One model's whole life."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "model"
    seed: Annotated[int, Field(ge=0)] = 1
    run_dir: Path | None = None  # default: runs/NAME
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

    @field_validator("run_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @property
    def directory(self) -> Path:
        """Where the run's files go."""
        return self.run_dir or Path("runs") / self.name


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `section.key=value` in TOML's spelling (a bare word is taken as a string).

    Relative source paths are relative to the recipe's own folder. Raises InputError naming file, key, cause and mend.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such recipe; write one with: lmforge new TEXTS {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    if isinstance(data.get("finetune"), dict) and isinstance(data["finetune"].get("base"), str):
        _take_from_base(data, path.resolve().parent)
    recipe = parse_recipe(data, where=str(path))
    return _resolve_paths(recipe, path.resolve().parent)


# keys of [model] that may differ from those of a model it goes on from
OWN = ("recompute", "rope_scaling", "rope_trained")


def _take_from_base(data: dict[str, Any], folder: Path) -> None:
    """Complete a recipe that fine-tunes: network, vocabulary and context of its base, and defaults that suit examples.

    Raises:
        InputError: no model there; or the recipe states another network, or sources.
    """
    given = data["finetune"]
    corpus, tokens, model, train, evaluate = (
        data.setdefault(name, {}) for name in ("corpus", "tokens", "model", "train", "evaluate")
    )
    if not all(isinstance(section, dict) for section in (corpus, tokens, model, train, evaluate)):
        return  # parsing tells what is wrong
    base = _absolute(Path(given["base"]), folder)
    base = base if (base / "config.json").is_file() else base / "model"
    try:
        config = json.loads((base / "config.json").read_text())
        shape, compression = dict(config["architecture"]), config["compression"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (base / "config.json").is_file() and "model_type" in (base / "config.json").read_text(errors="replace"):
            raise InputError(
                f"finetune.base: {given['base']}: a checkpoint of transformers; make a model of it first: "
                f"lmforge import {given['base']} MODEL"
            ) from error
        raise InputError(
            f"finetune.base: {given['base']}: no model there; give a run that is trained, a checkpoint or a model"
        ) from error
    if compression:
        raise InputError(
            f"finetune.base: {given['base']}: a compressed model, which cannot be trained; give the model that it was "
            "made from"
        )
    given["base"] = str(base)
    if corpus.setdefault("sources", []):
        raise InputError(
            "corpus.sources: a recipe with [finetune] learns from finetune.train alone; leave the sources out"
        )
    for section, stated, key in [("model", model, key) for key in Model.model_fields if key in shape] + [
        ("tokens", tokens, "vocab_size")
    ]:
        value = (
            [stated[key]]
            if key == "attention" and isinstance(stated.get(key), str)
            else stated.setdefault(key, shape[key])
        )
        if value != shape[key] and key not in OWN:
            raise InputError(
                f"{section}.{key}: {value} is not {shape[key]}, that of finetune.base; leave it out, it is taken from "
                "there"
            )
    if tokens.setdefault("context", shape["context"]) != shape["context"] and shape["positions"] == "learned":
        raise InputError(
            f"tokens.context: {tokens['context']}; the learned positions of finetune.base need {shape['context']}"
        )
    tokens.setdefault("packing", "best_fit")  # whole examples
    train.setdefault("peak_lr", 2e-3 if given.get("lora") is not None else 3e-4)
    train.setdefault("weight_decay", 0.0)
    evaluate.setdefault("tasks", ["answers", "generation_speed"])


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as nested dictionaries."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def _resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    corpus = recipe.corpus
    changed: dict[str, Any] = {
        "sources": tuple(source.model_copy(update={"path": _resolved(source, base)}) for source in corpus.sources),
        "synthesis": tuple(
            step.model_copy(update={"model": _absolute(step.model, base)})
            if isinstance(step, BackTranslation) and step.model
            else step
            for step in corpus.synthesis
        ),
        "decontaminate": tuple(_absolute(path, base) for path in corpus.decontaminate),
        "toxic_words": corpus.toxic_words and _absolute(corpus.toxic_words, base),
    }
    for name, keys in (("perplexity", ("reference",)), ("quality", ("good", "bad", "model"))):
        if section := getattr(corpus, name):
            paths = {key: _absolute(getattr(section, key), base) for key in keys if getattr(section, key)}
            changed[name] = section.model_copy(update=paths)
    finetune = recipe.finetune
    if finetune:
        found = {key: _absolute(path, base) for key in ("base", "train", "test") if (path := getattr(finetune, key))}
        finetune = finetune.model_copy(update=found)
    return recipe.model_copy(update={"corpus": corpus.model_copy(update=changed), "finetune": finetune})


def _absolute(path: Path, base: Path) -> Path:
    return (base / path.expanduser()).resolve()


def _resolved(source: Source, base: Path) -> Path | None:
    path = source.path and base / source.path.expanduser()
    # OWNER/NAME on the Hub
    return source.path if path is None or (source.kind == "hub" and not path.exists()) else path.resolve()


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"--set {override}: expected section.key=value, for example --set train.peak_lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for name in names[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {override}: {name} is a value, not a section")
    data[names[-1]] = value


def _explain(problem: Any) -> str:
    """One line for one pydantic problem: the dotted key, the cause, the mend."""
    location = [part for part in problem["loc"] if part not in ("function-after", "tagged-union")]
    dotted = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        key, valid = str(location[-1]), _valid_keys(location[:-1])
        close = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
        section = ".".join(str(part) for part in location[:-1]) or "the top level"
        return (
            f"{dotted}: unknown key '{key}' in {section}; did you mean '{close[0]}'?"
            if close
            else f"{dotted}: unknown key"
        )
    cause = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {json.dumps(given, default=str)[:80]})"
    return f"{dotted}: {cause}{shown}"


def _valid_keys(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] = Recipe
    choices: list[type[BaseModel]] = []
    for part in location:
        if isinstance(part, int):
            continue
        if part in section.model_fields:
            choices = _sections_in(section.model_fields[part].annotation)
        else:  # one of several sections, named by its method
            choices = [each for each in choices if part in get_args(each.model_fields["method"].annotation)]
        if not choices:
            return []
        section = choices[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, list, Union, types.UnionType, Annotated):
        return [found for part in get_args(annotation) for found in _sections_in(part)]
    return []


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML; `load_recipe` of it gives an equal recipe. Keys whose value is None (derived at run time) are
    left out."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for name, section in data.items():
        if not isinstance(section, dict):
            continue
        lines += ["", f"[{name}]"]
        tables = {
            key: value
            for key, value in section.items()
            if isinstance(value, list) and value and isinstance(value[0], dict)
        }
        nested = {key: value for key, value in section.items() if isinstance(value, dict)}
        lines += [
            f"{key} = {_toml(value)}" for key, value in section.items() if key not in tables and key not in nested
        ]
        for key, value in nested.items():
            lines += ["", f"[{name}.{key}]", *(f"{_toml_key(inner)} = {_toml(each)}" for inner, each in value.items())]
        for key, entries in tables.items():
            for entry in entries:
                lines += ["", f"[[{name}.{key}]]", *(f"{inner} = {_toml(value)}" for inner, value in entry.items())]
    return "\n".join(lines) + "\n"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
