"""The largest network that some texts and five minutes of this machine are enough for, and how long it trains.

texts ────────────────────────────────┐
machine ─▶ operations in five minutes ┴─▶ layers, width, vocabulary, batch, steps
"""

from __future__ import annotations

import dataclasses
import math

from lmforge.model.gpt import GPTConfig
from lmforge.plan.cost import TRAINING, flops_per_token
from lmforge.plan.hardware import Hardware
from lmforge.plan.memory import training_bytes
from lmforge.plan.simulate import PROCESS_BYTES, expected_utilization
from lmforge.plan.texts import Texts, bytes_per_token

BUDGET_SECONDS = 300  # of training
# repeating text further teaches little (Muennighoff et al. 2023, section 5: 4 are as good as new, 40 worth nothing)
MOST_EPOCHS = 10
# of the blocks' matrices, as in recipes/laptop.toml (4.6); Hoffmann et al. 2022 find 20 for large networks
TOKENS_PER_PARAMETER = 4
UNMEASURED_FLOPS = 3e10  # of a core or two, where the machine's speed was not measured
MICRO_BATCH = 16_384  # tokens at once: larger ones gain no speed and take memory
SHAPES = (  # layers, width
    (2, 64),
    (4, 64),
    (4, 128),
    (6, 192),
    (6, 256),
    (8, 320),
    (8, 384),
    (10, 512),
    (12, 640),
    (12, 768),
    (16, 1024),
    (20, 1280),
    (24, 1536),
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network and how long it trains."""

    vocab_size: int
    layers: int
    width: int
    batch_tokens: int
    steps: int
    seconds: float


def choose_shape(full: Texts, hardware: Hardware) -> Shape:
    """The largest of `SHAPES` that both the time and the text are enough for, with vocabulary, batch and steps to fill
    the time."""
    chosen = None
    for layers, width in SHAPES:
        # Predicting among V tokens must not take more than the blocks do: V·D at most 12·layers·D².
        vocabulary = min(full.vocab_size, 1 << int(math.log2(12 * layers * width)))
        longer = bytes_per_token(full.vocab_size) / bytes_per_token(vocabulary)
        reworded = dataclasses.replace(full, vocab_size=vocabulary, train_tokens=round(full.train_tokens * longer))
        config = _config(reworded, layers, width)
        matrices = 12 * layers * width**2
        tokens, seconds = _affordable(reworded, hardware, config)
        batch = _batch(reworded, tokens)
        memory = (
            sum(training_bytes(config, min(batch, MICRO_BATCH), "muon", hardware.gpu is not None).values())
            + PROCESS_BYTES
        )
        if chosen and (
            tokens < TOKENS_PER_PARAMETER * matrices / math.sqrt(2) or memory > hardware.device_memory_bytes / 2
        ):
            break
        chosen = Shape(vocabulary, layers, width, batch, max(10, round(tokens / batch)), seconds)
    assert chosen is not None
    return chosen


def _config(texts: Texts, layers: int, width: int) -> GPTConfig:
    heads = heads_for(width)
    return GPTConfig(
        texts.vocab_size,
        texts.context,
        layers,
        width,
        heads,
        heads,
        4 * width,
        "relu2",
        "layernorm",
        "rope",
        qk_norm=True,
        ngram_rows=ngram_rows_for(texts),
    )


def heads_for(width: int) -> int:
    return width // (64 if width >= 256 else 32)


def ngram_rows_for(texts: Texts) -> int:
    """A row for every eighth token of the text, as a power of two; 256 to 32,768."""
    return 1 << min(15, max(8, round(math.log2(max(1, texts.train_tokens / 8)))))


def _affordable(texts: Texts, hardware: Hardware, config: GPTConfig) -> tuple[int, float]:
    """(tokens that the budget pays for, at most `MOST_EPOCHS` times the text; the seconds they take)."""
    speed = (hardware.matrix_flops or UNMEASURED_FLOPS) * expected_utilization(config, hardware.gpu is not None)
    per_token = TRAINING * sum(flops_per_token(config, config.context).values()) / speed
    tokens = min(BUDGET_SECONDS / per_token, MOST_EPOCHS * texts.train_tokens)
    return max(texts.context, int(tokens)), tokens * per_token


def _batch(texts: Texts, tokens: int) -> int:
    """About a thousandth of all tokens, a power of two of whole rows; 2,048 to 262,144, and at most a quarter of the
    text."""
    wanted = min(max(tokens / 1000, 2048), 262_144, max(texts.context, texts.train_tokens / 4))
    return max(texts.context, 1 << int(math.log2(max(1, wanted))))
