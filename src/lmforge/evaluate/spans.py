"""SQuAD 2.0 fine-tuned: windows over long contexts, answers back to characters, no answer where that is likelier.

    question, context ─▶ windows (size, stride) ─▶ `train.spans` ─▶ best span, P(no answer) ─▶ threshold ─▶ predictions
    OUT/squad.json, predictions.json, spans.json, na_prob.json, dev.json

The best span is that of the greatest sum of its two logits, at most `answer_tokens` long, over all windows; a token
counts in the window that shows most around it. No answer has the least likely window's logits (Devlin et al. 2019,
section 4.3). The threshold is what reaches the best F1 on questions that are neither learned from nor scored.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.evaluate.joins import puts_begin
from lmforge.evaluate.squad import Parts, Question, gold_of, official_file
from lmforge.evaluate.squad_metrics import best_threshold, official, raw_scores, with_threshold
from lmforge.evaluate.task import SEED
from lmforge.formats.loaded import LoadedModel
from lmforge.intervals import bootstrap_ratio
from lmforge.record import write_atomic
from lmforge.tokens.bpe import Tokenizer
from lmforge.train.classifier import Fit
from lmforge.train.spans import Pointed, Scores, SpanReader, fit_spans

CUE = "\nAnswer:"


@dataclasses.dataclass(frozen=True)
class Windows:
    """`size`: most tokens of a row; `stride`: context tokens from one window to the next; `question_tokens`: of a
    question, what is more being left out; `answer_tokens`: of an answer."""

    size: int = 384
    stride: int = 128
    question_tokens: int = 64
    answer_tokens: int = 30


class Cut(NamedTuple):
    """A window: its row, which context token is its first, and which of its tokens show most around them here."""

    row: Pointed
    offset: int
    best: NDArray[np.bool_]


class Read(NamedTuple):
    """A question's windows, and the characters (N, 2) of its context's tokens."""

    cuts: list[Cut]
    places: NDArray[np.int64]


class Reading(NamedTuple):
    """The best span, "" in an empty context, and the probability that there is no answer."""

    text: str
    none: float


@dataclasses.dataclass(frozen=True)
class Pointing:
    """What fine-tuning came to: figures, and of each scored question the best span, the probability that there is no
    answer, and the prediction."""

    figures: dict[str, Any]
    spans: dict[str, str]
    no_answer: dict[str, float]
    predictions: dict[str, str]


def windows_of(
    questions: Sequence[Question], tokenizer: Tokenizer, context: int, windows: Windows | None = None
) -> list[Read]:
    """Every question's windows; `context`: most tokens that the model reads.

    Raises:
        InputError: the question leaves less room than a stride (names it).
    """
    windows = windows or Windows()
    before = [tokenizer.begin] if puts_begin(tokenizer) else []
    opening, middle, cue = (tokenizer.encode(text) for text in ("Question:", "\nContext:", CUE))
    asked = tokenizer.encode_batch([f" {each.question.strip()}" for each in questions])
    encoded = {text: tokenizer.encode_spans(text) for text in dict.fromkeys(each.context for each in questions)}
    found = []
    for question, words in zip(questions, asked, strict=True):
        head = [*before, *opening, *words[: windows.question_tokens], *middle]
        room = min(windows.size, context) - len(head) - len(cue)
        if room < min(windows.stride, 8):
            raise InputError(
                f"question {question.id}: {len(head) + len(cue)} tokens leave no room for its context within "
                f"{min(windows.size, context)}; raise --window, or take a model that reads more"
            )
        tokens, places = encoded[question.context]
        answer = answer_tokens(question, places)
        cuts = []
        for start, stop, best in _bounds(len(tokens), room, windows.stride):
            row = [*head, *tokens[start:stop], *cue]
            first, none = len(head), len(row) - 1
            inside = answer is not None and start <= answer[0] and answer[1] < stop
            at = (answer[0] - start + first, answer[1] - start + first) if answer and inside else (none, none)
            cuts.append(Cut(Pointed(row, first, first + stop - start, *at), start, best))
        found.append(Read(cuts, places))
    return found


def _bounds(count: int, room: int, stride: int) -> list[tuple[int, int, NDArray[np.bool_]]]:
    """(first token, the one after the last, where each token has most on its scarcer side) of each window."""
    starts = [0]
    while starts[-1] + room < count:
        starts.append(starts[-1] + min(stride, room))
    around = np.full((len(starts), count), -1.0)
    for number, start in enumerate(starts):
        stop = min(count, start + room)
        at = np.arange(start, stop)
        around[number, start:stop] = np.minimum(at - start, stop - 1 - at) + 0.01 * (stop - start)
    best = around.argmax(0)
    return [
        (start, min(count, start + room), best[start : min(count, start + room)] == number)
        for number, start in enumerate(starts)
    ]


def answer_tokens(question: Question, places: NDArray[np.int64]) -> tuple[int, int] | None:
    """(first, last) token that has a part of the first answer; None without one, or where it does not stand in the
    context. An answer that does not stand where it is said to is taken where it does first."""
    if not question.answers or not len(places):
        return None
    text, start = question.answers[0]
    if not text or question.context[start : start + len(text)] != text:
        start = question.context.find(text) if text else -1
    if start < 0:
        return None
    first = int(np.searchsorted(places[:, 1], start, "right"))
    last = int(np.searchsorted(places[:, 0], start + len(text), "left")) - 1
    return min(first, len(places) - 1), max(first, last)


def best_span(scores: Scores, starts_at: NDArray[np.bool_], most: int) -> tuple[float, int, int]:
    """(sum of logits, first token, last) of the best span of at most `most` tokens that starts where it may; −∞ where
    there is no token."""
    starts, ends = np.array(scores.starts), np.array(scores.ends)
    starts = np.where(starts_at, starts, -math.inf)
    found = (-math.inf, 0, 0)
    for length in range(min(most, len(starts))):
        sums = starts[: len(starts) - length] + ends[length:]
        at = int(sums.argmax())
        if sums[at] > found[0]:
            found = (float(sums[at]), at, at + length)
    return found


def readings(reader: SpanReader, questions: Sequence[Question], read: Sequence[Read], most: int) -> list[Reading]:
    """The best span of each question and the probability of no answer: the logistic of how far its logits are above."""
    scores = iter(reader.scores([cut.row for each in read for cut in each.cuts]))
    found = []
    for question, each in zip(questions, read, strict=True):
        span, none = (-math.inf, 0, 0), math.inf
        for cut in each.cuts:
            own = next(scores)
            value, first, last = best_span(own, cut.best, most)
            span, none = max(span, (value, first + cut.offset, last + cut.offset)), min(none, own.none)
        if span[0] == -math.inf:
            found.append(Reading("", 1.0))
            continue
        start, end = int(each.places[span[1], 0]), int(each.places[span[2], 1])
        found.append(Reading(question.context[start:end].strip(), _logistic(none - span[0])))
    return found


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def tune_spans(loaded: LoadedModel, parts: Parts, fit: Fit, windows: Windows | None = None) -> Pointing:
    """Fine-tune a model, in place, choose the threshold, and answer every scored question.

    Raises:
        InputError: a question that does not fit; as `train.classifier.fit_reader`.
    """
    windows, tokenizer, context = windows or Windows(), loaded.tokenizer, loaded.model.config.context
    learned = windows_of(parts.learned, tokenizer, context, windows)
    kept = [each for question, each in zip(parts.learned, learned, strict=True) if _to_learn(question, each)]
    reader, training = fit_spans(loaded.model, [cut.row for each in kept for cut in each.cuts], fit)

    def read(questions: Sequence[Question]) -> tuple[dict[str, str], dict[str, float]]:
        there = windows_of(questions, tokenizer, context, windows)
        found = readings(reader, questions, there, windows.answer_tokens)
        pairs = list(zip(questions, found, strict=True))
        return {each.id: one.text for each, one in pairs}, {each.id: one.none for each, one in pairs}

    spans, none = read(parts.threshold)
    gold = gold_of(parts.threshold)
    raw = {name: pair[1] for name, pair in raw_scores(gold, spans).items()}
    reached, least = best_threshold(raw, spans, none, gold)
    threshold = middle_of(least, none.values())
    chosen = {"threshold": threshold, "f1_there": reached, "unanswerable_there": _share(gold)}
    spans, none = read(parts.scored)
    predictions = {name: "" if none[name] > threshold else text for name, text in spans.items()}
    figures = measured(parts.scored, spans, none, threshold)
    figures |= {"null_threshold": chosen, "windows": dataclasses.asdict(windows), "questions": parts.said}
    return Pointing(figures | {"training": {**training, "rows": len(kept)}}, spans, none, predictions)


def middle_of(least: float, no_answer: Iterable[float]) -> float:
    """Between the least threshold that reaches the best F1 and the next probability, where another question would be
    answered: as far from both as it can be. 0, at which nothing is answered, stays."""
    return (least + min((each for each in no_answer if each > least), default=least)) / 2 if least else 0.0


def _to_learn(question: Question, read: Read) -> bool:
    """Whether a question says what is right: an answer that stands in no window whole says nothing."""
    return not question.answers or any(cut.row.start < cut.row.stop for cut in read.cuts)


def _share(gold: Mapping[str, Sequence[str]]) -> float:
    return sum(not answers for answers in gold.values()) / len(gold)


def measured(
    questions: Sequence[Question], spans: Mapping[str, str], none: Mapping[str, float], threshold: float
) -> dict[str, Any]:
    """The official figures (percent), exact and F1 with their 95% intervals, what answering nothing reaches, and the
    interval of how far F1 is above that, over the same questions."""
    gold = gold_of(questions)
    raw = raw_scores(gold, spans)
    names, ones = list(gold), np.ones(len(gold))
    nothing = np.array([float(not gold[name]) for name in names])
    result: dict[str, Any] = {
        "items": len(names),
        "official": official(gold, spans, none, threshold),
        "no_answer_baseline": float(nothing.mean()),
    }
    for place, metric in enumerate(("exact", "f1")):
        kept = with_threshold({name: pair[place] for name, pair in raw.items()}, none, gold, threshold)
        own = np.array([kept[name] for name in names])
        low, high = bootstrap_ratio(own, ones, SEED) or (None, None)
        result[metric] = {"value": float(own.mean()), "low": low, "high": high}
        low, high = bootstrap_ratio(own - nothing, ones, SEED) or (None, None)
        result[f"{metric}_above_baseline"] = {"value": float((own - nothing).mean()), "low": low, "high": high}
    return result


def write_pointing(pointing: Pointing, scored: Sequence[Question], out: Path) -> list[Path]:
    """squad.json (figures), predictions.json and dev.json as the official script takes them; and spans.json with
    na_prob.json, which give it the same figures with `--na-prob-thresh` at the threshold, and its best ones."""
    contents: dict[str, object] = {
        "squad.json": pointing.figures,
        "predictions.json": pointing.predictions,
        "spans.json": pointing.spans,
        "na_prob.json": pointing.no_answer,
        "dev.json": official_file(scored),
    }
    for name, content in contents.items():
        indent = 1 if name == "squad.json" else None
        write_atomic(out / name, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
    return [out / name for name in contents]
