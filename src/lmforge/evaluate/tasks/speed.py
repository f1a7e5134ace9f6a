"""How fast a model reads and writes: greedy decoding of one row through the loop that everything uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lmforge import machine
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, device_of, is_number, register
from lmforge.generate.decode import Sampling, decode
from lmforge.intervals import bootstrap_median
from lmforge.model.gpt import GPT
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.recipe.types import Positive

REPETITIONS, WARM_UP, NEW_TOKENS = 7, 1, 64


class SpeedSettings(TaskSettings):
    """Settings of `generation_speed`, which knows no items and so no limit."""

    new_tokens: Positive = NEW_TOKENS  # written each time
    repetitions: Positive = REPETITIONS  # of which the median counts


@register
class GenerationSpeed(Task[SpeedSettings]):
    """Tokens per second of decoding at batch 1, the median of 7 repetitions, its interval by bootstrap.

    The prompt is the beginning of the test tokens, half a context long (at most 512); up to 64 tokens are written, so
    that nothing is read twice. `prefill_tokens_per_second`: the prompt over the time to the first token. Models are
    measured one after the other; compressed/report.json has them taking turns.
    """

    name = "generation_speed"
    settings = SpeedSettings

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """None: how often is measured does not depend on how much is scored."""
        return {}

    def run(self, context: Context, settings: SpeedSettings) -> Score:
        """Measure the present model."""
        length = context.network.config.context
        prompt_tokens, new = max(1, min(512, length // 2)), max(2, min(settings.new_tokens, length // 2))
        prompt = [int(token) for token in context.shards.read(0, prompt_tokens)]
        rows = [measure(context.network, prompt, new) for _ in range(WARM_UP + settings.repetitions)][WARM_UP:]
        rates = np.array([row["tokens_per_second"] for row in rows])
        low, high = bootstrap_median(rates, SEED) or (None, None)
        first = float(np.median([row["first_token_seconds"] for row in rows]))
        here = {"device": str(device_of(context.network)), "threads": torch.get_num_threads()}
        return Score(
            metric="tokens per second",
            value=float(np.median(rates)),
            low=low,
            high=high,
            items=settings.repetitions,
            higher_is_better=True,
            comparison_key={
                "prompt": f"the first {prompt_tokens} tokens of the test texts (speed does not depend on which)",
                "marks": "end of text does not stop decoding",
                "limits": {"new_tokens": new, "rows": 1},
                "machine": here | machine.describe(),
            },
            extra={
                "batch": 1,
                "prompt_tokens": prompt_tokens,
                "new_tokens": new,
                **here,
                "fastest": float(rates.max()),
                "slowest": float(rates.min()),
                "first_token_seconds": first,
                "prefill_tokens_per_second": prompt_tokens / first,
            },
            rows=rows,
        )

    def headline(self, score: Content) -> str:
        """The rate."""
        value = score.get("value")
        return f"{value:,.0f} tokens/s" if is_number(value) else ""


def measure(model: GPT, prompt: list[int], new: int) -> dict[str, Any]:
    """Seconds to the first of `new` tokens after `prompt`, and tokens per second of the others."""
    started = time.perf_counter()
    steps = decode(model, [prompt], [Sampling(max_tokens=new, temperature=0.0, stop_ids=())])
    next(steps)
    first = time.perf_counter()
    made = sum(len(step) for step in steps)
    ended = time.perf_counter()
    return {"first_token_seconds": first - started, "tokens_per_second": made / max(ended - first, 1e-9)}
