"""Noising as a training objective: a sequence → (input, target), the loss on the target alone.

    units = words(text)                                     or a list of token ids: every function takes either
    pair = span_mask(units, rng, share=0.15, mean=3)        Pair(input=[…, Mark(0), …], target=[Mark(0), …, Mark(1), …])
    restore(pair)                                           == units, for the objectives whose target holds only what is
    missing

    token_mask             BERT (Devlin et al. 2019, 3.1): single units; the target is the whole
    span_mask              T5 (Raffel et al. 2020, 3.1.4): runs of units, each replaced by a mark; the target lists
    marks and runs
    infill                 BART (Lewis et al. 2020, 2.2): runs of Poisson(3) units replaced by one mark; the target is
    the whole
    delete, permute, rotate, characters      BART: units gone, sentences shuffled, begun elsewhere; and typing errors;
    the target is the whole
    prefix                 the second part from the first: UL2's S-denoiser (Tay et al. 2023, 3.1)
    mixture                UL2's seven denoisers, one drawn for each sequence, named by a mode mark at the front of the
    input

Everything is a pure function of the sequence and the generator given, which `rng_of(seed, index)` makes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex

from lmforge.corpus import scripts

Units = list[Any]  # words (str) or token ids (int), and `Mark`s
MASKED, SPAN, POISSON = 0.15, 3.0, 3.0
_SENTENCE_END = regex.compile(r"[\p{Sentence_Terminal}…][\"'”’)\]»›」』]*\s*\Z")
_KEYS = "abcdefghijklmnopqrstuvwxyz"


class Mark(NamedTuple):
    """A special unit: number n of the sentinels, `MASK`, or a mode."""

    name: str


MASK = Mark("mask")


def sentinel(number: int) -> Mark:
    """The mark of the `number`-th gap."""
    return Mark(str(number))


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is seen and what is to be said. `objective` names how it was made."""

    input: Units
    target: Units
    objective: str


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The random stream of sequence `index`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def words(text: str) -> Units:
    """A text as words, each with the blanks before it, in a script without blanks as signs; joined they are the text
    again."""
    return list(scripts.units(text))


def gaps(length: int, share: float, mean: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """[start, end) of the runs to take out of `length` units: about `share` of the units in all, `mean` to a run, never
    touching, and the first unit always stays. Raffel et al. 2020 (`random_spans_noise_mask`): both the runs and what
    lies between are random partitions."""
    if length < 2:
        return []
    taken = min(max(round(length * share), 1), length - 1)
    runs = min(max(round(taken / mean), 1), taken, length - taken)
    kept_parts, taken_parts = _partition(length - taken, runs, rng), _partition(taken, runs, rng)
    spans, at = [], 0
    for kept, run in zip(kept_parts, taken_parts, strict=True):
        spans.append((at + kept, at + kept + run))
        at += kept + run
    return spans


def _partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """`total` as a sum of `parts` positive numbers, every such sum equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, dtype=np.int64)
    return [int(size) for size in np.diff([0, *cuts, total])]


def span_mask(units: Units, rng: np.random.Generator, share: float = MASKED, mean: float = SPAN) -> Pair:
    """Runs replaced by sentinels; the target is each sentinel with its run, and a last sentinel."""
    seen, said, at = [], [], 0
    runs = gaps(len(units), share, mean, rng)
    for number, (start, end) in enumerate(runs):
        seen += [*units[at:start], sentinel(number)]
        said += [sentinel(number), *units[start:end]]
        at = end
    return Pair([*seen, *units[at:]], [*said, sentinel(len(runs))], "span_mask")


def restore(pair: Pair) -> Units:
    """The sequence that a `span_mask` or `prefix` pair (a mode mark aside) was made of."""
    runs: dict[Mark, Units] = {}
    current: Units = []
    for unit in pair.target:
        if isinstance(unit, Mark):
            current = runs.setdefault(unit, [])
        else:
            current.append(unit)
    whole: Units = []
    for unit in pair.input:
        whole += runs.get(unit, []) if isinstance(unit, Mark) else [unit]
    return whole


def token_mask(units: Units, rng: np.random.Generator, share: float = MASKED) -> Pair:
    """Single units replaced by `MASK`."""
    chosen = set(rng.choice(len(units), round(len(units) * share), replace=False).tolist()) if units else set()
    return Pair([MASK if place in chosen else unit for place, unit in enumerate(units)], list(units), "token_mask")


def infill(units: Units, rng: np.random.Generator, share: float = 0.3) -> Pair:
    """Runs of Poisson(3) units replaced by one `MASK` each; a run of none puts a `MASK` between two units."""
    budget, runs = round(len(units) * share), []
    while budget > 0:
        run = min(int(rng.poisson(POISSON)), budget)
        runs.append((int(rng.integers(len(units) - run + 1)), run))
        budget -= max(run, 1)
    seen, at = [], 0
    for start, run in sorted(runs):
        if start >= at:  # not inside what is gone already
            seen += [*units[at:start], MASK]
            at = start + run
    return Pair([*seen, *units[at:]], list(units), "infill")


def delete(units: Units, rng: np.random.Generator, share: float = MASKED) -> Pair:
    """Units gone without a trace; one always stays."""
    stays = rng.random(len(units)) >= share
    if units and not stays.any():
        stays[int(rng.integers(len(units)))] = True
    return Pair([unit for unit, yes in zip(units, stays, strict=True) if yes], list(units), "delete")


def permute(units: Units, rng: np.random.Generator, end: Callable[[Any], bool] | None = None) -> Pair:
    """Sentences in a random order; `end` says whether a unit ends one (by default: a word with a full stop, so token
    ids need their own)."""
    ends = end or (lambda unit: bool(_SENTENCE_END.search(unit)))
    sentences: list[Units] = [[]]
    for unit in units:
        sentences[-1].append(unit)
        if ends(unit):
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    order = rng.permutation(len(sentences))
    return Pair([unit for place in order for unit in sentences[place]], list(units), "permute")


def rotate(units: Units, rng: np.random.Generator) -> Pair:
    """Begun at a random unit, the part before it put behind."""
    at = int(rng.integers(len(units))) if units else 0
    return Pair([*units[at:], *units[:at]], list(units), "rotate")


def characters(units: Units, rng: np.random.Generator, share: float = 0.05) -> Pair:
    """Typing errors in words: for each letter, with chance `share`, it is lost, doubled, exchanged with the next or
    another one."""
    seen = []
    for unit in units:
        letters = list(unit)
        for place in np.flatnonzero(rng.random(len(letters)) < share):
            letter = letters[place]
            if not letter.isalpha():
                continue
            kind = rng.integers(4)
            if kind == 2 and place + 1 < len(letters) and letters[place + 1].isalpha():
                letters[place], letters[place + 1] = letters[place + 1], letter
            else:
                letters[place] = ("", letter * 2, letter, _KEYS[rng.integers(len(_KEYS))])[kind]
        seen.append("".join(letters))
    return Pair(seen, list(units), "characters")


def prefix(units: Units, rng: np.random.Generator, share: float = 0.25) -> Pair:
    """The end of the sequence, about `share` of it on average (uniform up to twice that), from what stands before."""
    length = max(1, round(len(units) * min(1.0, 2 * share) * float(rng.random())))
    cut = min(max(1, len(units) - length), len(units))
    return Pair([*units[:cut], sentinel(0)], [sentinel(0), *units[cut:], sentinel(1)], "prefix")


# UL2's table 1: (mode, mean run, share); the mode S is the prefix objective. R: usual spans; X: long or many.
DENOISERS: tuple[tuple[str, float, float], ...] = (
    ("R", 3, 0.15), ("R", 8, 0.15), ("S", 0, 0.25), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5),
)  # fmt: skip


def mixture(units: Units, rng: np.random.Generator) -> Pair:
    """One of UL2's denoisers, each equally often; its mode is the first unit of the input."""
    mode, mean, share = DENOISERS[int(rng.integers(len(DENOISERS)))]
    pair = prefix(units, rng, share) if mode == "S" else span_mask(units, rng, share, mean)
    return Pair([Mark(mode), *pair.input], pair.target, "mixture")


OBJECTIVES: dict[str, Callable[[Units, np.random.Generator], Pair]] = {
    "token_mask": token_mask,
    "span_mask": span_mask,
    "infill": infill,
    "delete": delete,
    "permute": permute,
    "rotate": rotate,
    "characters": characters,
    "prefix": prefix,
    "mixture": mixture,
}


def on_ids(pair: Pair, marks: dict[str, int], unit: Sequence[int] = ()) -> tuple[list[int], list[bool]]:
    """A pair of token ids as one sequence for the ordinary causal loss: (tokens, which of them count), the marks as the
    ids in `marks`, `unit` between input and target."""
    seen, said = (
        [marks[each.name] if isinstance(each, Mark) else each for each in part] for part in (pair.input, pair.target)
    )
    return [*seen, *unit, *said], [False] * (len(seen) + len(unit)) + [True] * len(said)


def render(pair: Pair) -> tuple[str, list[list[int]]]:
    """A pair of words as one text, and the spans of it that count: input, a line `<fill>`, target. Marks are written
    `<0>`, `<mask>`."""
    seen, said = (
        "".join(f"<{each.name}>" if isinstance(each, Mark) else each for each in part)
        for part in (pair.input, pair.target)
    )
    head = f"{seen.rstrip()}\n<fill>"
    text = f"{head}{'' if said[:1].isspace() else ' '}{said.rstrip()}\n"
    return text, [[len(head), len(text)]]


def has_marks(text: str) -> bool:
    """Whether a text holds what `render` would write for a mark, and so could not be told from it."""
    return bool(re.search(r"<(\d+|mask|fill|[RSX])>", text))
