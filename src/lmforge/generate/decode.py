"""The one decoding loop. Chat, scoring and the server all use it.

prompts ─prefill─▶ cache ─┬─▶ logits ─sample─▶ tokens ─▶ out
                          └──── one token a row ◀─────┘
"""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lmforge.errors import InputError, LmforgeError
from lmforge.generate.continuation import InvariantContinuation, Rows, shortened
from lmforge.model.gpt import GPT

GREEDY_BELOW = 1e-5  # temperatures below take the likeliest token: a float cannot hold what a division by them gives


class TokenBytes(Protocol):
    """What the text stream needs of a tokenizer."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for (none for a special token)."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 (or below 1e-5) takes the likeliest; `top_k` 0 and `top_p` 1 keep
    every token; a seed is taken modulo 2^64."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()  # the tokenizer's `special_tokens.stop`
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, valid, range_ in (
            ("max_tokens", self.max_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature <= 10, "between 0 and 10"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not valid:
                raise InputError(f"{name}: {getattr(self, name)} is outside its range; give a value {range_}")


@dataclasses.dataclass(frozen=True)
class SampledToken:
    """One token of one row: its log-probability (nats) under the model, the likeliest alternatives, and why the row
    ended if it did."""

    row: int
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


@torch.inference_mode()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    batch_invariant: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
) -> Iterator[list[SampledToken]]:
    """Continue every prompt; yields, step by step, the token drawn for each unfinished row.

    A prompt longer than the context keeps its end; a row that fills the context goes on from its last half. Each row
    draws from its own random stream. `batch_invariant`: its numbers, too, are the same bit for bit in any company
    (`InvariantContinuation`); otherwise their last bits are not, and of two tokens that are all but equally likely
    another one may be drawn. `samplings` is read anew at each step.

    With `on_error`, a row for which no token can be drawn is told there and ends; the others go on.

    Raises:
        InputError: an empty prompt, or not one sampling per prompt.
    """
    if len(prompts) != len(samplings) or not all(len(prompt) for prompt in prompts):
        raise InputError("prompt: empty; give at least one token (for instance the end-of-text token)")
    context = model.config.context
    live = {row: list(prompt)[-(context - 1) :] for row, prompt in enumerate(prompts) if samplings[row].max_tokens > 0}
    generators = {row: _generator(samplings[row].seed) for row in live}
    made = dict.fromkeys(live, 0)
    kind = InvariantContinuation if batch_invariant else Rows
    rows = kind(model, live, context) if live else None
    while live:
        assert rows is not None
        step, logits = [], rows.logits()
        for row in list(live):
            last = made[row] + 1 >= samplings[row].max_tokens
            try:
                drawn = _draw(row, logits[row], samplings[row], generators[row], last)
            except Exception as error:
                if on_error is None:
                    raise
                on_error(row, error)
                del live[row]
                continue
            live[row].append(drawn.token)
            made[row] += 1
            step.append(drawn)
        yield step
        live = {row: live[row] for row in live if not any(drawn.row == row and drawn.finish for drawn in step)}
        if live:
            rows.advance(live)
            for row, history in live.items():
                live[row] = list(shortened(history, context))


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**64)
    return generator


def _draw(row: int, logits: Tensor, sampling: Sampling, generator: torch.Generator, last: bool) -> SampledToken:
    log_p = torch.log_softmax(logits, dim=-1)
    if sampling.temperature < GREEDY_BELOW:
        token = int(logits.argmax())
    else:
        kept = logits / sampling.temperature
        if 0 < sampling.top_k < kept.numel():
            kept = kept.masked_fill(kept < kept.topk(sampling.top_k).values[-1], float("-inf"))
        if sampling.top_p < 1:
            ordered, index = kept.softmax(-1).sort(descending=True)
            outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first token past the mass is kept
            kept = kept.index_fill(0, index[outside], float("-inf"))
        token = int(torch.multinomial(kept.softmax(-1), 1, generator=generator))
    if not math.isfinite(log_p[token]):
        raise LmforgeError("the network gives no number for the next token (not finite); its weights are damaged")
    top: tuple[tuple[int, float], ...] = ()
    if sampling.top_logprobs:
        values, ids = log_p.topk(min(sampling.top_logprobs, log_p.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    finish = "stop" if token in sampling.stop_ids else "length" if last else None
    return SampledToken(row, token, float(log_p[token]), top, finish)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a text as it grows: what to append now, the tokens drawn since the last piece, and why the text ended
    if it did."""

    text: str
    drawn: tuple[SampledToken, ...]
    finish: str | None = None


class TextAssembler:
    """Tokens → text that never needs to be taken back: unfinished UTF-8 and possible beginnings of a stop string are
    held back."""

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.finished = False

    def add(self, drawn: SampledToken) -> tuple[str, str | None]:
        """The text that is now certain, and why it ended if it did."""
        ended = drawn.finish is not None
        stopped_by_token = drawn.finish == "stop"
        self.held += self.utf8.decode(b"" if stopped_by_token else self.tokenizer.token_bytes(drawn.token), final=ended)
        cut = min((at for at in (self.held.find(text) for text in self.stop) if at >= 0), default=-1)
        if cut >= 0:
            text, self.held, self.finished = self.held[:cut], "", True
            return text, "stop"
        keep = 0 if ended else self._possible_stop()
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return text, drawn.finish

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(text) for text in self.stop), default=1) - 1
        return next(
            (
                n
                for n in range(min(longest, len(self.held)), 0, -1)
                if any(t.startswith(self.held[-n:]) for t in self.stop)
            ),
            0,
        )


def stream_text(
    model: GPT, tokenizer: TokenBytes, prompt: Sequence[int], sampling: Sampling, stop: Sequence[str] = ()
) -> Iterator[Piece]:
    """Continue one prompt as text, piece by piece; the joined pieces are the whole text, whoever reads them."""
    assembler = TextAssembler(tokenizer, stop)
    waiting: list[SampledToken] = []
    for (drawn,) in decode(model, [prompt], [sampling]):
        waiting.append(drawn)
        text, finish = assembler.add(drawn)
        if text or finish:
            yield Piece(text, tuple(waiting), finish)
            waiting = []
        if finish:
            return
    if sampling.max_tokens == 0:
        yield Piece("", (), "length")
