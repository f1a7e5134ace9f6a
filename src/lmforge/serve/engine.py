"""Requests → batches → answers, token by token. One worker thread owns the model; everybody else only waits in its
queue.

    submit ─▶ queue (bounded) ─▶ up to 16 rows, one request after another ─▶ decode, step by step ─▶ each row's own
    listener

Rows that wait at the same moment are decoded together. A row that arrives while a batch runs waits for that batch to
end (as many steps as its longest answer has tokens; the API asks for no more than the context holds) and for the
batches queued before its own. Each row has its own random stream, and (`batch_invariant`) its numbers are the same bits
in any company, so its answer does not depend on who shares the batch. A row that fails fails alone.
"""

from __future__ import annotations

import codecs
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from lmforge.errors import LmforgeError
from lmforge.generate.decode import SampledToken, Sampling, TextAssembler, TokenBytes, decode
from lmforge.model.gpt import GPT

BATCH_ROWS = 16
QUEUE_ROWS = 256
_SCORE_CHUNK = 128  # positions whose logits are held at once


class Overloaded(LmforgeError):
    """The queue is full; the same request may be sent again later."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt to continue. With `score_from` = i, the log-probabilities of prompt[i:] are told first."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    score_from: int | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of an answer: log-probability in nats (None: nothing stands before it), the likeliest at its place, and
    the character of the row's text at which its own text begins."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Part:
    """What a row gained: text that is certain, the tokens whose text begins in it, and why the row ended if it did.

    `drawn` counts the tokens drawn for the row so far, also those whose text was cut off. `prompt` marks the prompt's
    scores.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    drawn: int = 0
    finish: str | None = None
    prompt: bool = False


Listener = Callable[[int, Part | Exception], None]


class Ticket:
    """A request that was accepted; `cancel` ends its rows at their next step."""

    def __init__(self, rows: Sequence[Row], listener: Listener) -> None:
        self.listener = listener
        self.cancelled = False
        self.waiting = deque(_Active(self, index, row) for index, row in enumerate(rows))

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.cancelled = True


class _Active:
    """A row on its way: assembles its tokens into text and says when they are certain."""

    def __init__(self, ticket: Ticket, index: int, row: Row) -> None:
        self.ticket, self.index, self.row = ticket, index, row
        self.done = False
        self.drawn = self.released = 0
        self.held: deque[Token] = deque()
        self.assembler: TextAssembler | None = None

    def tell(self, event: Part | Exception) -> None:
        """Hand an event to the listener; a row that ended says nothing more."""
        if self.done or self.ticket.cancelled:
            return
        self.done = isinstance(event, Exception) or event.finish is not None
        self.ticket.listener(self.index, event)

    def add(self, drawn: SampledToken, tokenizer: TokenBytes) -> None:
        """Take one drawn token and tell what became certain by it."""
        if self.assembler is None:
            self.assembler = TextAssembler(tokenizer, self.row.stop)
        self.drawn += 1
        if drawn.finish != "stop":
            self.held.append(Token(drawn.token, drawn.logprob, drawn.top, self.released + len(self.assembler.held)))
        text, finish = self.assembler.add(drawn)
        self.released += len(text)
        ready = []
        while self.held and (self.held[0].offset < self.released or finish == "length"):
            ready.append(self.held.popleft())
        if text or ready or finish:
            self.tell(Part(text, tuple(ready), self.drawn, finish))


class Engine:
    """Owns a model in a thread of its own. Close it (or use `with`) to end the thread."""

    def __init__(
        self,
        model: GPT,
        tokenizer: TokenBytes,
        batch_rows: int = BATCH_ROWS,
        queue_rows: int = QUEUE_ROWS,
        batch_invariant: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.batch_rows, self.queue_rows = model, tokenizer, batch_rows, queue_rows
        self.batch_invariant = batch_invariant
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="lmforge-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the running batch at its next step, refuse what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, rows: Sequence[Row], listener: Listener) -> Ticket:
        """Queue the rows of one request. `listener(index, event)` is called in the engine's thread, must not block, and
        gets the Parts of each row in order, the last with `finish` set, or one exception.

        Raises:
            Overloaded: the queue has no room for these rows.
        """
        ticket = Ticket(rows, listener)
        with self._changed:
            waiting = sum(len(other.waiting) for other in self._queue if not other.cancelled)
            if self._closing or waiting + len(rows) > self.queue_rows:
                raise Overloaded(
                    f"{waiting} prompts wait already and the queue holds {self.queue_rows}; send this again later"
                )
            if ticket.waiting:
                self._queue.append(ticket)
                self._changed.notify_all()
        return ticket

    def _work(self) -> None:
        while rows := self._gather():
            self._answer_each([row for row in rows if self._begun(row)])
        with self._changed:
            for ticket in self._queue:
                for row in ticket.waiting:
                    row.tell(Overloaded("the server is shutting down"))

    def _gather(self) -> list[_Active]:
        """Wait for work, then take one row of each waiting request in turn until the batch is full. Empty: time to
        end."""
        rows: list[_Active] = []
        with self._changed:
            while not rows:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return []
                while self._queue and len(rows) < self.batch_rows:
                    ticket = self._queue.popleft()
                    if not ticket.cancelled:
                        rows.append(ticket.waiting.popleft())
                        if ticket.waiting:
                            self._queue.append(ticket)
        return rows

    def _begun(self, row: _Active) -> bool:
        """Tell the prompt's scores where they are asked for; whether anything is to be drawn after them."""
        try:
            if row.row.score_from is not None and not row.ticket.cancelled:
                top = row.row.sampling.top_logprobs
                scores = prompt_scores(self.model, self.tokenizer, row.row.prompt, row.row.score_from, top)
                row.tell(Part("", tuple(scores), prompt=True))
            if row.row.sampling.max_tokens == 0:
                row.tell(Part("", finish="length"))
        except Exception as error:
            row.tell(error)
        return not row.done and not row.ticket.cancelled

    def _answer_each(self, rows: list[_Active]) -> None:
        """Answer rows together. Where the batch fails as a whole, those that have drawn nothing yet are tried again one
        by one: the fault may be another's."""
        try:
            self._answer(rows)
        except Exception as error:
            for row in rows:
                if len(rows) == 1 or row.drawn or isinstance(error, Overloaded):
                    row.tell(error)
                elif not row.done:
                    self._answer_each([row])

    def _answer(self, rows: list[_Active]) -> None:
        # decode reads `samplings` anew at each step: a row given max_tokens 0 ends with its next token.
        samplings = [row.row.sampling for row in rows]
        steps: Iterator[list[SampledToken]] = decode(
            self.model,
            [row.row.prompt for row in rows],
            samplings,
            batch_invariant=self.batch_invariant,
            on_error=lambda row, error: rows[row].tell(error),
        )
        for step in steps:
            for drawn in step:
                row = rows[drawn.row]
                if not row.done and not row.ticket.cancelled:
                    try:
                        row.add(drawn, self.tokenizer)
                    except Exception as error:
                        row.tell(error)
                if (row.done or row.ticket.cancelled) and not drawn.finish:
                    samplings[drawn.row] = dataclasses.replace(row.row.sampling, max_tokens=0)
            if self._closing:
                raise Overloaded("the server is shutting down")
            if all(row.done or row.ticket.cancelled for row in rows):
                return


def text_offsets(tokenizer: TokenBytes, tokens: Sequence[int]) -> list[int]:
    """The character of the joined text at which each token's own text begins."""
    utf8, length, offsets = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for token in tokens:
        offsets.append(length)
        length += len(utf8.decode(tokenizer.token_bytes(token)))
    return offsets


@torch.inference_mode()
def prompt_scores(model: GPT, tokenizer: TokenBytes, prompt: Sequence[int], first: int, top: int) -> list[Token]:
    """ln p of each token of prompt[first:] given all before it, and the `top` likeliest tokens at its place."""
    offsets = text_offsets(tokenizer, prompt[first:])
    scores = [Token(prompt[0], None, (), 0)] if first == 0 else []
    begin = max(first, 1)
    if begin >= len(prompt):
        return scores
    assert model.head is not None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids = torch.tensor(prompt, device=device)
    hidden = model.hidden(ids[None, :-1])[0]
    for start in range(begin, len(prompt), _SCORE_CHUNK):
        targets = ids[start : start + _SCORE_CHUNK]
        log_p = model.head(hidden[start - 1 : start - 1 + len(targets)]).float().log_softmax(-1)
        own = log_p.gather(1, targets[:, None])[:, 0].tolist()
        best = log_p.topk(min(top, log_p.shape[-1]))
        for i, (token, logprob) in enumerate(zip(targets.tolist(), own, strict=True)):
            likeliest = tuple(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True))
            scores.append(Token(token, logprob, likeliest, offsets[start + i - first]))
    return scores
