"""How fast a model reads and writes: greedy decoding of one row through the loop that everything uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lmforge import machine
from lmforge.evaluate.task import SEED, Context, Score, device_of
from lmforge.generate.decode import Sampling, decode
from lmforge.intervals import bootstrap_median
from lmforge.model.gpt import GPT

REPETITIONS, WARM_UP, NEW_TOKENS = 7, 1, 64


def generation_speed(context: Context) -> Score:
    """The task: tokens per second of decoding at batch 1, the median of 7 repetitions, its interval by bootstrap.

    The prompt is the beginning of the test tokens, half a context long (at most 512); up to 64 tokens are written, so
    that nothing is read twice. `prefill_tokens_per_second`: the prompt over the time to the first token. Models are
    measured one after the other; compressed/report.json has them taking turns.
    """
    length = context.network.config.context
    prompt_tokens, new = max(1, min(512, length // 2)), max(2, min(NEW_TOKENS, length // 2))
    prompt = [int(token) for token in context.shards.read(0, prompt_tokens)]
    rows = [measure(context.network, prompt, new) for _ in range(WARM_UP + REPETITIONS)][WARM_UP:]
    rates = np.array([row["tokens_per_second"] for row in rows])
    low, high = bootstrap_median(rates, SEED) or (None, None)
    first = float(np.median([row["first_token_seconds"] for row in rows]))
    here = {"device": str(device_of(context.network)), "threads": torch.get_num_threads()}
    return Score(
        metric="tokens per second",
        value=float(np.median(rates)),
        low=low,
        high=high,
        items=REPETITIONS,
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


def measure(model: GPT, prompt: list[int], new: int) -> dict[str, Any]:
    """Seconds to the first of `new` tokens after `prompt`, and tokens per second of the others."""
    started = time.perf_counter()
    steps = decode(model, [prompt], [Sampling(max_tokens=new, temperature=0.0, stop_ids=())])
    next(steps)
    first = time.perf_counter()
    made = sum(len(step) for step in steps)
    ended = time.perf_counter()
    return {"first_token_seconds": first - started, "tokens_per_second": made / max(ended - first, 1e-9)}
