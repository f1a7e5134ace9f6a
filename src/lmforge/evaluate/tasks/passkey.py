"""Does a model find again what stood far back? A key among filler, asked for at the end (Mohtashami and Jaggi 2023,
section 4.2).

    filler … " The key of bak is 4 7 1 1." … filler … " The key of bak is" ─▶ " 4 7 1 1"?

By depth (0: the key stands at the beginning, 1: just before the question) and by length: 256 tokens, 1,024, 4,096, …
and the whole context. A key is found when each of its tokens is the likeliest after those before it, which is what
greedy decoding would write.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lmforge.evaluate.task import (
    SEED,
    Content,
    Context,
    Score,
    ShareMap,
    Task,
    device_of,
    is_number,
    not_applicable,
    register,
)
from lmforge.intervals import wilson
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.recipe.evaluate import TaskSettings
from lmforge.record import hash_json
from lmforge.tokens.bpe import Tokenizer

METRIC = "share of keys found"
DEPTHS, SHORTEST, DIGITS = 10, 256, 4
BATCH_TOKENS = 16_384
FILLER = (
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
    " The rain falls on the hill.",
    " A bird sings in the old tree.",
    " We walk along the road.",
    " The night is long and cold.",
    " Some days are warm.",
)
NAMES = tuple(a + b + c for a, b, c in itertools.product("bdgklmnp", "aeiou", "dlnt"))


def passage() -> str:
    """The filler in the order of the paper, for a corpus to keep out."""
    return "".join(FILLER).strip()


@dataclasses.dataclass(frozen=True)
class PasskeyRow:
    """tokens: filler, key, filler, question, and the answer without its last token; answer: what is wanted after the
    question."""

    tokens: list[int]
    answer: list[int]


class Passkeys:
    """Rows of tokens with a key in them, made from sentences, each encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sentences = tokenizer.encode_batch(FILLER)
        self.questions = dict(
            zip(NAMES, tokenizer.encode_batch([f" The key of {name} is" for name in NAMES]), strict=True)
        )
        self.stop = tokenizer.encode(".")

    def answer(self, key: Sequence[int]) -> list[int]:
        """The key's digits, a blank before each, so that any tokenizer takes them apart alike."""
        return self.tokenizer.encode("".join(f" {digit}" for digit in key))

    def filler(self, rng: random.Random, length: int) -> list[list[int]]:
        """Sentences of `length` tokens together, the first one cut at its beginning."""
        backwards: list[list[int]] = []
        while length > 0:
            backwards.append(rng.choice(self.sentences)[-length:])
            length -= len(backwards[-1])
        return backwards[::-1]

    def row(self, rng: random.Random, length: int, depth: float) -> PasskeyRow | None:
        """A row of `length` tokens whose key stands at `depth`, between two sentences; None where there is no room for
        key and question."""
        question, answer = self.questions[rng.choice(NAMES)], self.answer([rng.randrange(10) for _ in range(DIGITS)])
        fact = question + answer + self.stop
        room = length - len(fact) - len(question) - len(answer) + 1
        if room < 0:
            return None
        filler = self.filler(rng, room)
        ends = [0, *itertools.accumulate(map(len, filler))]
        at = min(range(len(ends)), key=lambda place: abs(ends[place] - depth * room))
        return PasskeyRow(
            [*itertools.chain(*filler[:at]), *fact, *itertools.chain(*filler[at:]), *question, *answer[:-1]], answer
        )


def lengths_up_to(context: int) -> list[int]:
    """256, 1,024, 4,096, … below the context, and the context."""
    return [*(SHORTEST * 4**power for power in range(20) if SHORTEST * 4**power < context), context]


@torch.inference_mode()
def keys_found(model: GPT, rows: Sequence[PasskeyRow]) -> list[bool]:
    """Of rows of one length: whose answer's tokens are all the likeliest."""
    assert model.head is not None
    hidden = model.hidden(torch.tensor([row.tokens for row in rows], device=device_of(model)))
    return [
        model.head(states[-len(row.answer) :]).argmax(-1).tolist() == row.answer
        for states, row in zip(hidden, rows, strict=True)
    ]


@register
class Passkey(Task[TaskSettings]):
    """The share of keys found, at ten depths of each length, `limit` keys a length (at least one a depth), with
    Wilson's interval. `accuracy` has a row a length and a column a depth. Not applicable where the context has no
    room."""

    name = "passkey"
    settings = TaskSettings

    def texts(self, settings: TaskSettings) -> Iterable[str]:
        """The filler."""
        return [passage()]

    def run(self, context: Context, settings: TaskSettings) -> Score:
        """Ask for every key."""
        makes, length = Passkeys(context.tokenizer), context.network.config.context
        lengths, each = lengths_up_to(length), max(1, (settings.limit or DEPTHS) // DEPTHS)
        comparison_key = {
            "data": hash_json([FILLER, NAMES, DIGITS]),
            "prompt": "filler, The key of NAME is D D D D., filler, The key of NAME is",
            "marks": "none",
            "decoding": "greedy",
            "limits": {"lengths": lengths, "depths": DEPTHS, "keys": each},
        }
        if makes.row(random.Random(SEED), length, 0.5) is None:
            reason = f"a context of {length} tokens has no room for a key and its question"
            return not_applicable(METRIC, reason, comparison_key)
        rows: list[dict[str, Any]] = []
        with Bar("evaluate", len(lengths) * DEPTHS * each, "keys") as bar:
            for tokens in lengths:
                rows += _at_length(context.network, makes, tokens, each, bar)
        hits = sum(row["found"] for row in rows)
        low, high = wilson(hits, len(rows))
        kept = [tokens for tokens in lengths if any(row["tokens"] == tokens for row in rows)]
        extra = {
            "lengths": kept,
            "depths": [(depth + 0.5) / DEPTHS for depth in range(DEPTHS)],
            "accuracy": [[_share(rows, tokens, depth) for depth in range(DEPTHS)] for tokens in kept],
            "keys_per_cell": each,
        }
        value, ratio = hits / len(rows), ("found", "")
        return Score(METRIC, value, low, high, len(rows), True, comparison_key, extra, rows, ratio=ratio)

    def headline(self, score: Content) -> str:
        """The share over all lengths."""
        value = score.get("value")
        return f"{100 * value:.0f}% of keys found" if is_number(value) else ""

    def maps(self, model: str, score: Content) -> list[ShareMap]:
        """Where keys were found: depth × length."""
        rows = []
        for length, shares in zip(_list(score, "lengths"), _list(score, "accuracy"), strict=False):
            if is_number(length) and isinstance(shares, list) and shares and all(map(is_number, shares)):
                rows.append((f"{length:,}", [float(share) for share in shares]))
        if not rows:
            return []
        depths = [f"{100 * depth:.0f}%" for depth in _list(score, "depths") if is_number(depth)]
        title = f"Keys found, {model}: % by length (tokens) and depth"
        return [ShareMap(title, depths, rows, "depth of the key; 0% is the beginning")]


def _list(score: Mapping[str, Any], key: str) -> list[Any]:
    value = score.get(key)
    return value if isinstance(value, list) else []


def _at_length(model: GPT, makes: Passkeys, tokens: int, each: int, bar: Bar) -> list[dict[str, Any]]:
    """`each` keys at every depth of one length; none where that length has no room."""
    rng = random.Random(f"{SEED} {tokens}")
    depths = [(place, (place + (number + 0.5) / each) / DEPTHS) for place in range(DEPTHS) for number in range(each)]
    rows: list[dict[str, Any]] = []
    size = max(1, BATCH_TOKENS // tokens)
    for start in range(0, len(depths), size):
        group = depths[start : start + size]
        made = [makes.row(rng, tokens, depth) for _, depth in group]
        given = [row for row in made if row is not None]
        if len(given) == len(made):
            rows += [{"tokens": tokens, "place": place, "depth": depth, "found": hit}
                     for (place, depth), hit in zip(group, keys_found(model, given), strict=True)]  # fmt: skip
        bar.step(len(group))
    return rows


def _share(rows: Sequence[dict[str, Any]], tokens: int, place: int) -> float:
    cell = [bool(row["found"]) for row in rows if row["tokens"] == tokens and row["place"] == place]
    return sum(cell) / len(cell)
