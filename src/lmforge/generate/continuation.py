"""Rows of tokens being continued: how they share the passes of the network.

Continuation          all rows in one padded batch: the fastest, and each number is right to its last bits but one
InvariantContinuation no number of a row depends on which other rows there are: the same bits alone or in company
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.generate.lean import lean_of, next_logits
from lmforge.model.gpt import GPT, KVCache

GROUP_ROWS = 16  # rows that an invariant pass takes at most, and up to which kernels are probed
MULTIPLES = (1, 2, 4, 8, GROUP_ROWS)


def device_of(model: GPT) -> torch.device:
    """Where a network's parameters lie; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def prefill(model: GPT, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[Tensor, KVCache]:
    """Run the prompts (one padded batch) and return the logits after each prompt's last token (B,V) with the filled
    cache.

    Padding stands on the right: a row's later tokens overwrite it, and no query ever reaches a key beyond its own
    position.
    """
    device = device_of(model)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    cache = KVCache(len(prompts), capacity, device, model.cache_dtype)
    hidden = model.hidden(tokens.to(device), cache, lengths=lengths.to(device))
    last = hidden[torch.arange(len(prompts), device=device), cache.lengths - 1]
    assert model.head is not None
    return model.head(last), cache


class Continuation:
    """Rows of tokens being continued: `logits` (B,V) after the last token of each, and the cache that a next token
    needs."""

    def __init__(self, model: GPT, histories: Sequence[Sequence[int]], capacity: int) -> None:
        self.model = model
        self.logits, self.cache = prefill(model, histories, capacity)

    def push(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> None:
        """Add a token to each row; with `parents`, row i goes on from what was row parents[i]."""
        device = self.cache.lengths.device
        if parents is not None:
            self.cache.select(torch.tensor(parents, device=device))
        self.logits = next_logits(self.model, torch.tensor(tokens, device=device), self.cache)


class Rows:
    """Rows known by number, in one `Continuation`. A row that ended is carried along until half of them have."""

    def __init__(self, model: GPT, histories: Mapping[int, Sequence[int]], capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self._start(histories)

    def _start(self, histories: Mapping[int, Sequence[int]]) -> None:
        self.slots = list(histories)
        self.continued = Continuation(self.model, [histories[row] for row in self.slots], self.capacity)

    def logits(self) -> dict[int, Tensor]:
        """After the last token of each row (V,), fp32 on the host; also of some that ended."""
        return dict(zip(self.slots, self.continued.logits.float().cpu(), strict=True))

    def advance(self, histories: Mapping[int, Sequence[int]]) -> None:
        """These rows go on, each with one token more at its end; the others have ended."""
        if self.continued.cache.extent >= self.capacity or len(histories) <= len(self.slots) // 2:
            self._start({row: shortened(history, self.capacity) for row, history in histories.items()})
        else:  # any token for those that ended: nobody reads on there
            self.continued.push([histories[row][-1] if row in histories else 0 for row in self.slots])


class InvariantContinuation:
    """As `Rows`, with no number of a row depending on the others.

    Prompts are read one by one. At each step every row attends in a call of its own (`KVCache.by_row`), and what is
    shared, the products with the weights, has a number of rows with which this machine's kernels give the same bits
    (`rows_multiple`), filled up with rows that nobody reads. Where there is no such number, rows go one by one.
    """

    def __init__(self, model: GPT, histories: Mapping[int, Sequence[int]], capacity: int) -> None:
        multiple = rows_multiple(model)
        size = GROUP_ROWS if multiple else 1
        rows = list(histories)
        self.groups = [
            _Group(model, {row: histories[row] for row in rows[first : first + size]}, capacity, multiple or 1)
            for first in range(0, len(rows), size)
        ]

    def logits(self) -> dict[int, Tensor]:
        """After the last token of each row (V,), fp32 on the host; also of some that ended."""
        return {row: logits for group in self.groups for row, logits in group.logits.items()}

    def advance(self, histories: Mapping[int, Sequence[int]]) -> None:
        """These rows go on, each with one token more at its end; the others have ended."""
        for group in self.groups:
            own = {row: histories[row] for row in group.logits if row in histories}
            if own:
                group.advance(own)
        self.groups = [group for group in self.groups if any(row in histories for row in group.logits)]


class _Group:
    """Up to 16 rows that share the products with the weights. `slots`: the row in each place of the cache, None where
    it only fills up."""

    def __init__(self, model: GPT, histories: Mapping[int, Sequence[int]], capacity: int, multiple: int) -> None:
        self.model, self.capacity, self.multiple = model, capacity, multiple
        self.logits: dict[int, Tensor] = {}
        self.slots: list[int | None] = []
        self.cache: KVCache | None = None
        self._read(histories)

    def _read(self, histories: Mapping[int, Sequence[int]]) -> None:
        """Take in rows from their first token on, beside those that are there."""
        caches = [] if self.cache is None else [self.cache]
        for row, history in histories.items():
            logits, cache = prefill(self.model, [history], self.capacity)
            self.logits[row] = logits[0].float().cpu()
            caches.append(cache)
        self.slots += histories
        while len(self.slots) % self.multiple:
            self.slots.append(None)
            caches.append(cache)
        self.cache = KVCache.joined(caches)

    def advance(self, histories: Mapping[int, Sequence[int]]) -> None:
        """These rows go on, each with one token more."""
        full = {row: shortened(text, self.capacity) for row, text in histories.items() if len(text) > self.capacity}
        going = {row: text for row, text in histories.items() if row not in full}
        self.logits = {}
        self._keep(going)
        if going:
            self._push(going)
        if full:
            self._read(full)

    def _keep(self, going: Mapping[int, Sequence[int]]) -> None:
        """Places for these rows alone, and for as few others as make a whole multiple."""
        places = [place for place, row in enumerate(self.slots) if row in going]
        spare = [place for place, row in enumerate(self.slots) if row not in going]
        places += spare[: -len(places) % self.multiple]
        self.slots = [row if row in going else None for row in self.slots]
        if not places:
            self.slots, self.cache = [], None
        elif len(places) < len(self.slots):
            assert self.cache is not None
            self.cache.select(torch.tensor(places, device=self.cache.lengths.device))
            self.slots = [self.slots[place] for place in places]

    def _push(self, going: Mapping[int, Sequence[int]]) -> None:
        assert self.cache is not None
        tokens = [0 if row is None else going[row][-1] for row in self.slots]
        # a place that only fills up begins anew each time: it costs one key, and never outgrows the context
        counts = [0 if row is None else len(going[row]) - 1 for row in self.slots]
        device = self.cache.lengths.device
        self.cache.lengths, self.cache.by_row = torch.tensor(counts, device=device), counts
        self.cache.extent = max(counts)
        logits = next_logits(self.model, torch.tensor(tokens, device=device), self.cache).float().cpu()
        self.logits = {row: logits[place] for place, row in enumerate(self.slots) if row is not None}


def shortened(history: Sequence[int], context: int) -> Sequence[int]:
    """A row's tokens, or the last half of a context of them where they no longer fit: its own length decides, not its
    neighbours'."""
    return history if len(history) <= context else history[-(context // 2) :]


_MULTIPLES: weakref.WeakKeyDictionary[nn.Module, dict[int, int | None]] = weakref.WeakKeyDictionary()


def rows_multiple(model: GPT) -> int | None:
    """The least number of which every multiple up to 16, as a number of rows, gives each row of a step the same bits.

    It is tried out, once for a model and a number of threads: every kind of layer, on what 16 rows bring to it, and the
    whole step. Products of integers are exact, so an int8 model has 1; of a matrix of floats, libraries multiply few
    rows by another kernel than many. None: rows have to go one by one, as where experts take as many rows as routing
    gives them, or where attention of a kind adds over all rows in one call.
    """
    known, threads = _MULTIPLES.setdefault(model, {}), torch.get_num_threads()
    if threads not in known:
        known[threads] = _probe(model)
    return known[threads]


@torch.inference_mode()
def _probe(model: GPT) -> int | None:
    config = model.config
    if config.has_experts or any(config.kind_of(layer) in ("lsh", "linear") for layer in range(config.layers)):
        return None
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(config.vocab_size, (GROUP_ROWS, 3), generator=generator).tolist()
    capacity = min(config.context, 64)
    if capacity < len(texts[0]) + 1:
        return None
    # as many places as rows, whatever their number
    whole = _Group(model, dict(enumerate(texts)), capacity, 1)

    def step() -> None:
        whole.advance({row: [*text, row] for row, text in enumerate(texts)})

    if lean_of(model) is None:
        calls = _watched(model, step)
    else:  # one call, with no layers to look at
        calls = []
        step()
    for multiple in MULTIPLES[:-1]:
        sizes = range(multiple, GROUP_ROWS, multiple)
        if all(_same(module, x, y, size) for module, x, y in calls for size in sizes) and all(
            _same_step(model, texts, capacity, whole.logits, size) for size in sizes
        ):
            return multiple
    return GROUP_ROWS


def _watched(model: GPT, step: Any) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """What `step` brings to one layer of each kind and shape, and what comes out: (layer, rows in, rows out)."""
    calls: dict[Any, tuple[nn.Module, Tensor, Tensor]] = {}

    def note(module: nn.Module, arguments: Any, result: Any) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], Tensor) and isinstance(result, Tensor):
            x = arguments[0]
            if x.is_floating_point() and len(x) == len(result) == GROUP_ROWS and module is not model:
                shapes = tuple(tuple(each.shape) for each in (*module.parameters(), *module.buffers()))
                calls.setdefault((type(module), x.shape, result.shape, shapes), (module, x.clone(), result.clone()))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _same(module: nn.Module, x: Tensor, y: Tensor, size: int) -> bool:
    """Whether the first and the last `size` rows give the bits that they give among all."""
    return all(torch.equal(module(x[rows].clone()), y[rows]) for rows in (slice(size), slice(len(x) - size, None)))


def _same_step(model: GPT, texts: list[list[int]], capacity: int, expected: Mapping[int, Tensor], size: int) -> bool:
    rows = range(len(texts) - size, len(texts))
    group = _Group(model, {row: texts[row] for row in rows}, capacity, 1)
    group.advance({row: [*texts[row], row] for row in rows})
    return all(torch.equal(group.logits[row], expected[row]) for row in rows)
