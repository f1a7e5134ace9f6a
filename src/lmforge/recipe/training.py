"""The `[train]` and `[finetune]` sections."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from lmforge.recipe.corpus import Genre
from lmforge.recipe.types import Curriculum, Positive, Section, Share, check_weight, in_order


class Train(Section):
    """Shards + network → checkpoints."""

    # updates; default: what `tokens` gives; 0, with model.base: the base is the model, as it is
    steps: Annotated[int, Field(ge=0)] | None = None
    tokens: Positive | None = None  # length in tokens, instead of steps; default: 20 million
    batch_tokens: Positive = 8192  # tokens of one update, over all processes
    # [share of training, batch_tokens] pairs, where it is not one size throughout
    batch_schedule: tuple[tuple[Share, Positive], ...] = ()
    # [share of training, context] pairs: shorter rows, as many tokens a batch
    context_schedule: tuple[tuple[Share, Positive], ...] = ()
    # how often texts of a genre are drawn, where not equally often
    mixture: dict[Genre, Curriculum] = Field(default={})
    # how first values are drawn: in_order, one generator through the whole network; by_index, each from its name and
    # place, so that processes that share a network draw their parts alone
    initialisation: Literal["in_order", "by_index"] = "in_order"
    # text: the tokens that count; prototypes: of images in episodes, the nearest mean of a class's other images, by
    # features (Snell et al. 2017)
    objective: Literal["text", "prototypes"] = "text"
    # tokens of one forward and backward pass; default: what measures fastest and fits
    micro_batch_tokens: Positive | None = None
    # muon: for the matrices inside blocks, AdamW for the rest; sgd: with Nesterov's momentum of betas[0]
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    optimizer_state: Literal["fp32", "8bit"] = "fp32"  # 8bit: a quarter of the memory (AdamW and Muon)
    # large freed blocks go back to the system at once: slower, but less memory with long texts and recompute
    return_memory: bool = False
    peak_lr: Annotated[float, Field(gt=0)] = 6e-4  # largest rate of AdamW and SGD
    matrix_lr: Annotated[float, Field(gt=0)] = 0.02  # Muon's rate, for matrices; peak_lr serves the rest
    # d_model that the rates were tuned at: rates, initialisation and output are scaled from it (µP)
    base_width: Positive | None = None
    # of the logits, to be tuned at base_width along with the rates
    output_multiplier: Annotated[float, Field(gt=0)] = 1.0
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: stable at the peak, falling over the last fifth of the run
    final_lr: Share = 0.1  # the schedule ends at this share of the peak
    # steps in which the rate rises; default: 4% of the steps, at most 2,000
    warmup: Annotated[int, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.1  # decoupled from the gradient (Loshchilov and Hutter 2019)
    weight_decay_schedule: Literal["constant", "linear"] = "constant"  # linear: falls to 0 over the run
    betas: tuple[float, float] = (0.9, 0.95)  # decay rates of the gradient's two moments
    # weight of (log Σ exp(logits))²; 1e-4 where training in half precision drifts
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0  # largest norm of the gradient
    # auto: the fastest safe one, measured at start-up on a CPU
    precision: Literal["fp32", "bf16", "fp16", "fp8", "auto"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: measured at start-up, its compile time counted
    threads: Positive | None = None  # that a network computes on; default: measured at start-up
    validate_every: Positive | None = None  # steps; default: a tenth of the run
    validate_tokens: Positive = 32_768  # tokens of validation text scored each time
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
    def _schedules_arein_order(self) -> Train:
        for weight in self.mixture.values():
            check_weight(weight)
        for name, schedule in (("context", self.context_schedule), ("batch", self.batch_schedule)):
            if schedule and not in_order(schedule):
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
    def _objective_fits(self) -> Train:
        if self.objective == "prototypes" and (self.compile == "on" or self.context_schedule):
            key = "compile 'on'" if self.compile == "on" else "context_schedule"
            raise ValueError(f"{key} is for the loss of text; objective 'prototypes' reads whole episodes of images")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("give steps or tokens, not both")
        return self


LoraTarget = Literal["attention.qkv", "attention.out", "ff.up", "ff.down"]


class Lora(Section):
    """Products of two narrow matrices, learned beside frozen matrices of every layer (Hu et al. 2021)."""

    rank: Positive = 8  # the narrow side of the two matrices
    alpha: Annotated[float, Field(gt=0)] | None = None  # the product counts alpha / rank times; default: twice the rank
    # matrices of each layer that get one
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = get_args(LoraTarget)

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return (self.alpha or 2 * self.rank) / self.rank


EPOCHS, MOST_EPOCHS = 3.0, 10.0
UPDATES = 200  # that a fine-tuning should make; with fewer, a small file is seen more often
BATCH_EXAMPLES = 16
LEAST_UPDATES = 100  # with fewer little is learned, and that is said
SAMPLED_BYTES = 1 << 26  # of a file of examples, from which the number of its lines is told


def example_sizes(path: Path) -> tuple[int, int] | None:
    """About how many examples, and tokens in them, a file of JSON lines holds, by its size and lines: four bytes a
    token, keys and marks included; a compressed file is taken to unfold to three times its size. None where there is no
    such file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            compressed = file.read(4)[:2] in (b"\x1f\x8b", b"\x28\xb5")  # gzip, Zstandard
            file.seek(0)
            sample = b"" if compressed else file.read(SAMPLED_BYTES)
    except OSError:
        return None
    if compressed:
        return max(1, 3 * size // 400), max(1, 3 * size // 4)
    lines = sample.count(b"\n") + 1
    return max(1, lines * size // max(1, len(sample))), max(1, size // 4)


def fitted_length(examples: int, tokens: int, context: int, epochs: float | None) -> tuple[int, float]:
    """Batch size in tokens, and epochs (those given, where they are), for a fine-tuning of so many examples.

    A batch is as large as leaves 200 updates in three epochs, at most 8,192 tokens and at least 16 examples; where even
    that gives fewer updates, examples are seen up to ten times (small data wants more passes: Mosbach et al. 2021, "On
    the Stability of Fine-tuning BERT", section 6), and then the batch shrinks to a row.
    """
    passes = epochs or EPOCHS
    most = max(1, 8192 // context)
    few = max(1, math.ceil(BATCH_EXAMPLES * tokens / examples / context))
    enough = int(passes * tokens / UPDATES / context)
    rows = min(most, max(few, enough))
    if epochs is None:
        wanted = UPDATES * rows * context / tokens
        passes = float(min(MOST_EPOCHS, max(EPOCHS, math.ceil(wanted))))
    if passes * tokens < LEAST_UPDATES * rows * context:
        rows = max(1, min(rows, int(passes * tokens / LEAST_UPDATES / context)))
    return rows * context, passes


class Finetune(Section):
    """A trained model and examples → a model of these examples. Takes the place of the corpus's sources, the vocabulary
    and [model]."""

    base: Path  # a run, a checkpoint or a model (not a compressed one)
    # chat: conversations; classify: one label for a text or a pair; span: answers found in a text
    task: Literal["chat", "classify", "span"]
    train: Path  # examples, a JSON object a line (plain, gzip or Zstandard)
    test: Path | None = None  # examples that are scored at the end; default: a part of `train`, as corpus.holdout says
    # classify: where its text stands, or a pair's two texts
    fields: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    label: str = "label"  # classify: where its label stands
    # classify: a label as the file has it → the word to answer with; default: as it is
    labels: dict[str, str] = Field(default={})
    instruction: str = ""  # a line before each question
    long: Literal["refuse", "skip"] = "refuse"  # what is done with a training example longer than tokens.context
    # times that each example is seen, where train.steps and train.tokens are not given; more for few examples, up to 10
    epochs: Annotated[float, Field(gt=0)] = EPOCHS
    lora: Lora | None = None  # adapters of low rank; default: every weight is trained

    @model_validator(mode="after")
    def _labels_are_words(self) -> Finetune:
        for label, word in self.labels.items():
            if not word.strip():
                raise ValueError(f"labels: {label!r} becomes an empty word; a model cannot answer with nothing")
        return self
