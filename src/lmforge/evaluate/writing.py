"""What a model writes after prompts: greedy or drawn, several times each, with a calculator where it is wanted.

    prompts ─decode, all rows alike whatever stands beside them─▶ text up to a stop
        with calculator: … "<<3*4=" ─▶ the row stops, "12" is added, it goes on in the next round

Texts are noted in the items' log as each batch ends, so that a killed evaluation goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmforge.evaluate.calculator import completed
from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.task import Context
from lmforge.generate.decode import Sampling, decode
from lmforge.progress import Bar
from lmforge.record import hash_json

BATCH_ROWS = 32  # prompts continued side by side
CALLS = 64  # of the calculator in one text
FORMAT = 2  # raised whenever the same model would write otherwise


@dataclasses.dataclass(frozen=True)
class Writing:
    """How it is written. `temperature` 0 is greedy; `samples` texts a prompt, each with a seed of its own that depends
    on the prompt alone; a text ends before the first of `stop`, at a token that ends texts, or after `new_tokens`."""

    new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    samples: int = 1
    calculator: bool = False
    seed: int = 0


def write(context: Context, prompts: Sequence[Sequence[int]], how: Writing, title: str) -> list[list[str]]:
    """The texts written after each prompt (tokens): `samples` of them, in order.

    The same whatever the number and order of prompts. A prompt that leaves no room for a token in the context gives
    empty texts; one that leaves less than `new_tokens` gives what fits.
    """
    length = context.network.config.context
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(how.samples)]
    texts: dict[tuple[int, int], str] = dict.fromkeys(rows, "")
    rows = [row for row in rows if 0 < len(prompts[row[0]]) < length]
    rows.sort(key=lambda row: len(prompts[row[0]]))
    with ItemLog(context.items_dir, hash_json(_log_key(context, how))) as log, Bar("evaluate", len(rows), title) as bar:
        asked = {row: [prompts[row[0]], row[1]] for row in rows}
        texts |= {row: known for row in rows if (known := log.get(asked[row])) is not None}
        left = [row for row in rows if log.get(asked[row]) is None]
        bar.step(len(rows) - len(left))
        for start in range(0, len(left), BATCH_ROWS):
            group = left[start : start + BATCH_ROWS]
            seeds = [how.seed + int(hash_json(asked[row])[:8], 16) for row in group]
            for row, text in zip(group, _group(context, [prompts[row[0]] for row in group], seeds, how), strict=True):
                texts[row] = text
                log.add(asked[row], text)
            bar.step(len(group))
    return [[texts[number, sample] for sample in range(how.samples)] for number in range(len(prompts))]


def _log_key(context: Context, how: Writing) -> dict[str, object]:
    return {
        "weights": context.weights,
        "dtype": sorted({str(each.dtype) for each in context.network.parameters()}),
        "tokenizer": context.tokenizer.sha256,
        "how": dataclasses.asdict(how),
        "code": FORMAT,
    }


def _group(context: Context, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: Writing) -> list[str]:
    """The texts of one batch of rows."""
    tokenizer, length = context.tokenizer, context.network.config.context
    written: list[list[int]] = [[] for _ in prompts]
    live, calls = list(range(len(prompts))), [0] * len(prompts)
    while live:
        room = [min(how.new_tokens, length - len(prompts[row])) - len(written[row]) for row in live]
        live = [row for row, left in zip(live, room, strict=True) if left > 0]
        samplings = [
            Sampling(left, how.temperature, seed=seeds[row] + calls[row], stop_ids=tokenizer.special_tokens.stop)
            for row, left in zip(live, (left for left in room if left > 0), strict=True)
        ]
        again = _round(context, live, prompts, written, samplings, how) if live else {}
        for row, result in again.items():
            written[row] += tokenizer.encode(result)
            calls[row] += 1
        live = [row for row in again if calls[row] < CALLS]
    return [_cut(tokenizer.decode(tokens), how.stop) for tokens in written]


def _round(
    context: Context,
    live: Sequence[int],
    prompts: Sequence[Sequence[int]],
    written: Sequence[list[int]],
    samplings: list[Sampling],
    how: Writing,
) -> dict[int, str]:
    """Continue these rows until each ends or calls the calculator; gives what the calculator says to those that do."""
    calls: dict[int, str] = {}
    over: set[int] = set()
    whole = [[*prompts[row], *written[row]] for row in live]
    for step in decode(context.network, whole, samplings, batch_invariant=True):
        for drawn in step:
            row = live[drawn.row]
            if row in calls or row in over or drawn.finish == "stop":
                continue
            written[row].append(drawn.token)
            text = context.tokenizer.decode(written[row][-64:])
            said = completed(text) if how.calculator else None
            if said is not None:
                calls[row] = said
            elif any(stop in text for stop in how.stop):
                over.add(row)
            else:
                continue
            # the row ends with its next token, which is not looked at: samplings are read anew at each step
            samplings[drawn.row] = dataclasses.replace(samplings[drawn.row], max_tokens=1)
    return calls


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
