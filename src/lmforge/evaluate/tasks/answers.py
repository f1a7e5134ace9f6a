"""How well a fine-tuned model answers the held-out examples of its task.

    classify   each label's likelihood as the answer ─▶ the likeliest ─▶ share that is right
    span       greedy answer ─▶ words in common with the nearest right one (F1), and share that is exact (Rajpurkar et
    al. 2016, section 6.1)
    chat       each answer's likelihood ─▶ bits per byte; beside it, greedy answers to some of the questions

An example that is longer than the context is not left out: it counts as answered wrongly (in a chat, whose bits are
infinite then, it is left out and counted).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from lmforge.corpus.build import read_documents
from lmforge.corpus.labelled import NO_ANSWER, Messages, read_examples
from lmforge.errors import InputError
from lmforge.evaluate.conversations import NEW_TOKENS, nats_of, written
from lmforge.evaluate.measures import matthews, normalised, word_f1
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, is_number, not_applicable, register
from lmforge.intervals import bootstrap_ratio, wilson
from lmforge.recipe import Finetune, Recipe
from lmforge.recipe.evaluate import DataSettings
from lmforge.record import hash_json
from lmforge.tokens.chat import Rendered, render_conversation

MEASURES = ("exact", "macro_f1", "matthews")  # shown beside the value


class AnswerSettings(DataSettings):
    """Settings of `answers`. `data`: examples in the form of `finetune.train`; `limit` counts examples."""

    shots: NonNegativeInt = 0  # answered training examples before each question


class Asked(NamedTuple):
    """A held-out example: its name, the conversation up to the answer, the answers that are right."""

    id: str
    question: Messages
    answers: list[str]


@register
class Answers(Task[AnswerSettings]):
    """Held-out examples answered. Not applicable to a run that was not fine-tuned."""

    name = "answers"
    settings = AnswerSettings
    format = 2  # an answer's end counts

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Every example; those that a model writes an answer to are `evaluate.items`."""
        return {}

    def texts(self, settings: AnswerSettings) -> Iterable[str]:
        """None: the corpus stage compares examples by their questions."""
        return ()

    def run(self, context: Context, settings: AnswerSettings) -> Score:
        """Ask for every example's answer."""
        finetune = context.recipe.finetune
        if finetune is None:
            reason = "the recipe has no [finetune], so there are no examples"
            return not_applicable("share answered rightly", reason, {})
        asked = list(held_out(context, settings, finetune))
        if settings.limit:
            asked = chosen(asked, settings.limit)
        comparison_key = {
            "data": hash_json([[each.question, each.answers] for each in asked]),
            "marks": "end of text first; rendered as in training, the answer's end scored",
            **({"shots": settings.shots} if settings.shots else {}),
        }
        if finetune.task == "classify":
            return classified(context, asked, comparison_key)
        items = settings.limit or context.recipe.evaluate.items
        return (spans if finetune.task == "span" else answered)(context, asked, comparison_key, items)

    def headline(self, score: Content) -> str:
        """The measure of the task that was learned."""
        items = score.get("items")
        counted = f" ({items:,} held-out examples)" if is_number(items) else ""
        return super().headline(score) + counted if is_number(score.get("value")) else ""

    def beside(self, score: Content) -> Mapping[str, Any]:
        """The other measures, then what is easy to get."""
        measures = {name.replace("_", " "): score[name] for name in MEASURES if is_number(score.get(name))}
        return {**measures, **super().beside(score)}


def held_out(context: Context, settings: AnswerSettings, finetune: Finetune) -> Iterator[Asked]:
    """The examples of the test split, or of `settings.data`, in their order, each after its shots.

    Raises:
        InputError: a document that is no example.
    """
    shots = [
        turn
        for each in itertools.islice(_of_split(context, "train"), settings.shots)
        for turn in with_answer(each.question, each.answers[0])
        if turn["role"] != "system"
    ]
    if settings.data is None:
        examples = _of_split(context, "test")
    else:
        read = read_examples(finetune, settings.data)
        examples = (Asked(each.where, each.question, list(each.answers)) for each in read)
    for each in examples:
        first = each.question[:1] if each.question[0]["role"] == "system" else []
        yield each._replace(question=[*first, *shots, *each.question[len(first) :]])


def _of_split(context: Context, split: str) -> Iterator[Asked]:
    for document in read_documents(context.corpus_dir, split):
        try:
            yield Asked(document["id"], document["meta"]["messages"][:-1], document["meta"]["answers"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{context.corpus_dir}: {split} document {document.get('id')!r} is no example; "
                "run the corpus stage again"
            ) from error


def with_answer(question: Messages, answer: str) -> Messages:
    """The conversation that the answer ends."""
    return [*question, {"role": "assistant", "content": answer}]


def classified(context: Context, asked: Sequence[Asked], comparison_key: dict[str, Any]) -> Score:
    """The share of examples whose likeliest label is the right one, with Wilson's interval."""
    labels = _labels(context, asked)
    rendered = [
        render_conversation(with_answer(each.question, label), context.tokenizer) for each in asked for label in labels
    ]
    nats = np.array(nats_of(context, rendered, "answers")).reshape(len(asked), len(labels))
    rows: list[dict[str, Any]] = [
        {
            "id": each.id,
            "label": each.answers[0],
            "predicted": labels[int(of_labels.argmin())],
            "too_long": bool(np.isinf(of_labels).any()),
            "correct": bool(np.isfinite(of_labels).all() and labels[int(of_labels.argmin())] == each.answers[0]),
        }
        for each, of_labels in zip(asked, nats, strict=True)
    ]
    right = sum(row["correct"] for row in rows)
    low, high = wilson(right, len(rows))
    by_label = {label: _of_label(rows, label) for label in labels}
    extra = {
        "labels": by_label,
        "macro_f1": sum(figures["f1"] for figures in by_label.values()) / len(labels),
        "matthews": matthews(
            [row["label"] for row in rows], [row["predicted"] if not row["too_long"] else "" for row in rows]
        ),
        "too_long": sum(row["too_long"] for row in rows),
        "baselines": {"most_frequent_label": max(figures["items"] for figures in by_label.values()) / len(rows)},
    }
    return Score(
        "accuracy",
        right / len(rows),
        low,
        high,
        len(rows),
        True,
        {**comparison_key, "labels": labels},
        extra,
        rows,
        ratio=("correct", ""),
    )


def _labels(context: Context, asked: Sequence[Asked]) -> list[str]:
    """The answers that there are, as the corpus stage counted them in the training examples."""
    statistics = json.loads((context.corpus_dir / "statistics.json").read_text())
    return sorted({*statistics["examples"]["labels"], *(each.answers[0] for each in asked)})


def _of_label(rows: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    """How many examples have it, and precision, recall and their harmonic mean."""
    given = [row for row in rows if row["predicted"] == label and not row["too_long"]]
    own = [row for row in rows if row["label"] == label]
    hits = sum(row["correct"] for row in own)
    f1 = 2 * hits / max(1, len(given) + len(own))
    return {"items": len(own), "precision": hits / max(1, len(given)), "recall": hits / max(1, len(own)), "f1": f1}


def spans(context: Context, asked: Sequence[Asked], comparison_key: dict[str, Any], items: int) -> Score:
    """The mean F1 of words in common with the nearest right answer over `items` questions chosen by hash,
    bootstrapped."""
    some = chosen(asked, items)
    rows = []
    for each, text in zip(some, written(context, [each.question for each in some]), strict=True):
        right = ["" if answer == NO_ANSWER else answer for answer in each.answers]
        given = "" if text is None or text == NO_ANSWER else text
        f1 = 0.0 if text is None else max(word_f1(given, answer) for answer in right)
        exact = text is not None and max(normalised(given) == normalised(answer) for answer in right)
        rows.append(
            {
                "id": each.id,
                "f1": f1,
                "exact": bool(exact),
                "answerable": right != [""],
                "too_long": text is None,
                **_shown(each, text),
            }
        )
    low, high = bootstrap_ratio(np.array([row["f1"] for row in rows]), np.ones(len(rows)), SEED) or (None, None)
    parts = {
        name: [row for row in rows if row["answerable"] is wanted]
        for name, wanted in (("answerable", True), (NO_ANSWER, False))
    }
    extra = {
        "exact": sum(row["exact"] for row in rows) / len(rows),
        "too_long": sum(row["too_long"] for row in rows),
        "parts": {
            name: {"items": len(part), "f1": sum(row["f1"] for row in part) / len(part)}
            for name, part in parts.items()
            if part
        },
        "in_context": sum(bool(row["completion"]) and row["completion"] in row["prompt"] for row in rows) / len(rows),
    }
    limits = {"items": items, "new_tokens": NEW_TOKENS}
    value = sum(row["f1"] for row in rows) / len(rows)
    return Score(
        "F1",
        value,
        low,
        high,
        len(rows),
        True,
        {**comparison_key, "decoding": "greedy", "limits": limits},
        extra,
        rows,
        ratio=("f1", ""),
    )


def answered(context: Context, asked: Sequence[Asked], comparison_key: dict[str, Any], items: int) -> Score:
    """Bits per byte of the assistant's words, of all examples within the context; greedy answers to `items` of them
    beside it."""
    rendered = [render_conversation(with_answer(each.question, each.answers[0]), context.tokenizer) for each in asked]
    fits = [number for number, each in enumerate(rendered) if len(each.tokens) <= context.network.config.context]
    if not fits:
        return not_applicable(
            "bits per byte of answers", "every example is longer than the context", comparison_key, False
        )
    bits = np.array(nats_of(context, [rendered[number] for number in fits], "answers")) / math.log(2)
    sizes = np.array([_counted_bytes(context, rendered[number]) for number in fits])
    some = chosen(asked, items)
    given = written(context, [each.question for each in some])
    texts = {each.id: (each, text) for each, text in zip(some, given, strict=True)}
    exact = [text is not None and normalised(text) == normalised(each.answers[0]) for each, text in texts.values()]
    f1 = [word_f1(text or "", each.answers[0]) for each, text in texts.values()]
    rows = [
        {"id": name, "bits": float(bit), "bytes": int(size), **(_shown(*texts[name]) if name in texts else {})}
        for name, bit, size in zip((asked[number].id for number in fits), bits, sizes, strict=True)
    ]
    rows.sort(key=lambda row: "completion" not in row)  # those that were written first, to be seen
    low, high = bootstrap_ratio(bits, sizes, SEED) or (None, None)
    value, metric = float(bits.sum() / sizes.sum()), "bits per byte of answers"
    extra = {
        "too_long": len(asked) - len(fits),
        "written": {"items": len(texts), "exact": sum(exact) / len(texts), "f1": sum(f1) / len(texts)},
    }
    return Score(metric, value, low, high, len(fits), False, comparison_key, extra, rows, ratio=("bits", "bytes"))


def _counted_bytes(context: Context, conversation: Rendered) -> int:
    counted = (token for token, counts in zip(conversation.tokens[1:], conversation.counted[1:], strict=True) if counts)
    return max(1, sum(len(context.tokenizer.token_bytes(token)) for token in counted))


def chosen(asked: Sequence[Asked], items: int) -> list[Asked]:
    """So many of the examples, by the hash of their question."""
    return sorted(asked, key=lambda each: hash_json(each.question))[:items]


def _shown(each: Asked, text: str | None) -> dict[str, Any]:
    """What the report shows of an answer that was written."""
    return {
        "prompt": "\n\n".join(turn["content"] for turn in each.question) + "\n\n",
        "completion": text or "",
        "answer": each.answers[0],
    }
