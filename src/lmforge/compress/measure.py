"""What a model costs to run: bytes, multiply-accumulates, memory, tokens per second. Several models in turn (A B A B),
so that a busy moment of the machine falls on all of them.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lmforge.compress.int8 import QuantizedLinear
from lmforge.generate.continuation import prefill
from lmforge.generate.lean import next_logits
from lmforge.model.experts import Experts
from lmforge.model.gpt import GPT, KVCache
from lmforge.model.linear_attention import Linear
from lmforge.plan.cost import decode_flops_per_token

BATCHES = (1, 8, 64)
REPETITIONS = 5
PREFILL_TOKENS = 256
MOST_DECODED = 256  # tokens of a row in one repetition: a cache of long contexts for 64 rows would fill the memory


def resident_bytes(model: nn.Module) -> int:
    """Bytes of everything the model holds in memory: parameters, buffers, and what modules say that they hold beside
    these (`unregistered_bytes()`: matrices packed for a kernel); what is shared counts once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if tensor.nbytes}
    beside = [getattr(module, "unregistered_bytes", None) for module in model.modules()]
    return sum(held.values()) + sum(int(count()) for count in beside if count is not None)


def module_macs(module: nn.Module) -> int:
    """Multiply-accumulates for one token of a module with all that is in it: what its `macs_per_token()` says, else
    in·out of a linear layer and none of a table, else the sum over its parts."""
    own = getattr(module, "macs_per_token", None)
    if own is not None:
        return int(own())
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return sum(module_macs(part) for part in module.children())


def macs_per_token(model: GPT) -> int:
    """Multiply-accumulates of one forward token, half a context of keys before it.

    Those of the modules (the output head is one) and those between tokens, by each layer's kind of attention: of full
    attention 2·(context/2)·W for scores and weighted values.
    """
    return module_macs(model) + _between_tokens(model)


def _between_tokens(model: GPT) -> int:
    """Multiply-accumulates of attention for one token half a context after the first; learned feature maps, which are
    a module's, left out."""
    flops = decode_flops_per_token(model.config, max(0, model.config.context // 2 - 1))["attention"]
    attentions = [block.attention for block in model.blocks if block.attention is not None]
    return round(flops / 2) - sum(module_macs(each.mixer) for each in attentions if isinstance(each.mixer, Linear))


def bit_operations(module: nn.Module) -> int:
    """Σ multiply-accumulates × bits of the weight × bits of the activation for one token (Baskin et al. 2021, "UNIQ",
    section 4.1, without the additions): what arithmetic of those widths would take, whatever this machine does. A
    module says its widths as `weight_bits` and `activation_bits`; else they are those of its weights' type."""
    if isinstance(module, Experts):
        each = sum(map(bit_operations, module.experts)) // len(module.experts)
        shared = 0 if module.shared is None else bit_operations(module.shared)
        return bit_operations(module.router) + module.active * each + shared
    if isinstance(module, GPT):  # scores and weighted values are in floating point
        between = _between_tokens(module) * 32 * 32
        return between + sum(bit_operations(part) for part in (*module.blocks, module.head) if part is not None)
    if isinstance(module, QuantizedLinear):
        return module.bit_operations()
    if isinstance(module, nn.Linear) or hasattr(module, "macs_per_token"):
        own = module.weight.dtype.itemsize * 8 if isinstance(module, nn.Linear) else 32
        weight, activation = (getattr(module, name, own) for name in ("weight_bits", "activation_bits"))
        return int(module_macs(module) * weight * activation)
    return sum(map(bit_operations, module.children()))


def measure(models: Mapping[str, GPT], seconds: float = 10.0) -> dict[str, dict[str, Any]]:
    """Per model: `resident_bytes, macs_per_token, bit_operations_per_token, decode_tokens_per_second {batch: x},
    prefill_tokens_per_second, threads`.

    Decoding is the network's greedy step (logits and argmax) after a prompt of a quarter context, at most 256 tokens;
    prefill is one prompt of 256 tokens, or of the context where that is shorter. Each is the median of 5 repetitions in
    which the models take turns, after a warm-up; `seconds` is about what the whole takes. Of networks that are too
    large for that there are fewer repetitions, at least one: none begins after twice its share of `seconds`.
    """
    share = seconds / (len(models) * (len(BATCHES) + 1) * (REPETITIONS + 1))

    def of_all(rate: Callable[..., float], *settings: Any) -> dict[str, float]:
        rates = {name: functools.partial(rate, model, share, *settings) for name, model in models.items()}
        return in_turn(rates, limit=2 * seconds / (len(BATCHES) + 1))

    begun = {model: read_prompt(model) for model in models.values()}

    def decoding(model: GPT, seconds: float, batch: int) -> float:
        return decode_rate(model, batch, seconds, begun[model])

    decode = {batch: of_all(decoding, batch) for batch in BATCHES}
    prefilled = of_all(prefill_rate)
    return {
        name: {
            "resident_bytes": resident_bytes(model),
            "macs_per_token": macs_per_token(model),
            "bit_operations_per_token": bit_operations(model),
            "decode_tokens_per_second": {str(batch): round(decode[batch][name], 1) for batch in BATCHES},
            "prefill_tokens_per_second": round(prefilled[name], 1),
            "threads": torch.get_num_threads(),
        }
        for name, model in models.items()
    }


def in_turn(
    rates: Mapping[str, Callable[[], float]], repetitions: int = REPETITIONS, limit: float = float("inf")
) -> dict[str, float]:
    """The median of each measurement, all taking turns; every second round runs backwards, and the first round does not
    count. After `limit` seconds no other round begins, but for one that counts."""
    measured: dict[str, list[float]] = {name: [] for name in rates}
    started = time.perf_counter()
    for repetition in range(repetitions + 1):
        if repetition > 1 and time.perf_counter() - started > limit:
            break
        for name in list(rates)[:: -1 if repetition % 2 else 1]:
            rate = rates[name]()
            if repetition:
                measured[name].append(rate)
    return {name: statistics.median(values) for name, values in measured.items()}


@torch.inference_mode()
def read_prompt(model: GPT) -> KVCache:
    """What a network keeps of the prompt that decoding is measured after: a quarter context, at most 256 tokens."""
    length = max(1, min(PREFILL_TOKENS, model.config.context // 4))
    capacity = min(model.config.context, length + MOST_DECODED)
    return prefill(model, [[position % model.config.vocab_size for position in range(length)]], capacity)[1]


@torch.inference_mode()
def decode_rate(model: GPT, batch: int, seconds: float, begun: KVCache | None = None) -> float:
    """Tokens per second (all rows together) of greedy decoding for about `seconds`, after a prompt (`begun`, which is
    left as it is; by default `read_prompt`). The rows share it, and go on from tokens of their own."""
    cache = copy.deepcopy(begun) if begun is not None else read_prompt(model)
    cache.select(cache.lengths.new_zeros(batch))
    tokens = torch.arange(batch, device=cache.lengths.device) % model.config.vocab_size
    steps = 0
    started = time.perf_counter()
    while steps < 3 or (time.perf_counter() - started < seconds and cache.extent < cache.capacity):
        tokens = next_logits(model, tokens, cache).argmax(-1)
        steps += 1
    return batch * steps / (time.perf_counter() - started)


@torch.inference_mode()
def prefill_rate(model: GPT, seconds: float) -> float:
    """Tokens per second of reading one prompt into a new cache, for about `seconds`."""
    prompt = [t % model.config.vocab_size for t in range(min(PREFILL_TOKENS, model.config.context))]
    tokens = 0
    started = time.perf_counter()
    while not tokens or time.perf_counter() - started < seconds:
        prefill(model, [prompt], model.config.context)
        tokens += len(prompt)
    return tokens / (time.perf_counter() - started)


@torch.inference_mode()
def step_seconds(models: Sequence[GPT], repetitions: int = 15) -> list[float]:
    """Processor seconds of one greedy step at batch 1, the least of several in turn: what else the machine does is not
    in it, so that a choice made by it is the same on a busy machine."""
    begun = [prefill(model, [[0]], min(model.config.context, repetitions + 4)) for model in models]
    least = [float("inf")] * len(models)
    for _ in range(min(repetitions, models[0].config.context - 2)):
        for number, (model, (_, cache)) in enumerate(zip(models, begun, strict=True)):
            started = time.process_time()
            next_logits(model, torch.zeros(1, dtype=torch.long), cache)
            least[number] = min(least[number], time.process_time() - started)
    return least
