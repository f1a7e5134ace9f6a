"""How well a fine-tuned model answers the held-out examples of its task.

    classify   each label's likelihood as the answer ─▶ the likeliest ─▶ share that is right
    span       greedy answer ─▶ words in common with the nearest right one (F1), and share that is exact (Rajpurkar et
    al. 2016, section 6.1)
    chat       each answer's likelihood ─▶ bits per byte; beside it, greedy answers to some of the questions

An example that is longer than the context is not left out: it counts as answered wrongly (in a chat, whose bits are
infinite then, it is left out and counted).
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lmforge.corpus.build import read_documents
from lmforge.corpus.labelled import NO_ANSWER, Messages
from lmforge.errors import InputError
from lmforge.evaluate.language import BATCH_TOKENS
from lmforge.evaluate.task import SEED, Context, Score, device_of
from lmforge.generate.decode import Sampling, decode
from lmforge.generate.score import token_nats
from lmforge.intervals import bootstrap_ratio, wilson
from lmforge.progress import Bar
from lmforge.record import hash_json
from lmforge.tokens.chat import STOP, Rendered, render_chat, render_conversation, stop_tokens

NEW_TOKENS = 64  # that an answer may have
BATCH_ROWS = 16  # answers written side by side


class Asked(NamedTuple):
    """A held-out example: its name, the conversation up to the answer, the answers that are right."""

    id: str
    question: Messages
    answers: list[str]


def answers(context: Context) -> Score:
    """The task: held-out examples answered. Not applicable to a run that was not fine-tuned."""
    settings = context.recipe.finetune
    if settings is None:
        return Score(
            "share answered rightly",
            None,
            None,
            None,
            0,
            True,
            {},
            not_applicable="the recipe has no [finetune], so there are no examples",
        )
    asked = list(held_out(context))
    comparison_key = {
        "data": hash_json([[each.question, each.answers] for each in asked]),
        "marks": "end of text first; rendered as in training",
    }
    return {"classify": classified, "span": spans, "chat": answered}[settings.task](context, asked, comparison_key)


def held_out(context: Context) -> Iterator[Asked]:
    """The examples of the test split, in their order.

    Raises:
        InputError: a document that is no example.
    """
    for document in read_documents(context.corpus_dir, "test"):
        try:
            yield Asked(document["id"], document["meta"]["messages"][:-1], document["meta"]["answers"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{context.corpus_dir}: test document {document.get('id')!r} is no example; run the corpus stage again"
            ) from error


def with_answer(question: Messages, answer: str) -> Messages:
    """The conversation that the answer ends."""
    return [*question, {"role": "assistant", "content": answer}]


def nats_of(context: Context, conversations: Sequence[Rendered], title: str) -> list[float]:
    """−ln p of what counts in each conversation after its first token, in nats; infinite where it is longer than the
    context."""
    found = [math.inf] * len(conversations)
    device, length = device_of(context.network), context.network.config.context
    order = sorted(
        (n for n, each in enumerate(conversations) if len(each.tokens) <= length),
        key=lambda n: len(conversations[n].tokens),
    )
    with Bar("evaluate", len(order), title) as bar:
        for group in _groups(order, [len(each.tokens) for each in conversations], BATCH_TOKENS[device.type]):
            width = len(conversations[group[-1]].tokens)
            tokens, targets = torch.zeros(len(group), width, dtype=torch.long), torch.full((len(group), width), -1)
            for row, number in enumerate(group):
                ids, counted = (torch.tensor(each) for each in conversations[number])
                tokens[row, : len(ids)] = ids
                targets[row, : len(ids) - 1] = ids[1:].where(counted[1:], -1)
            nats = token_nats(context.network, tokens.to(device), targets.to(device)).double().sum(1).tolist()
            for number, value in zip(group, nats, strict=True):
                found[number] = value
            bar.step(len(group))
    return found


def _groups(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """`order` (by length, ascending) in groups that padded to their longest hold at most about `most` tokens."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[number] > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


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
            "predicted": labels[int(found.argmin())],
            "too_long": bool(np.isinf(found).any()),
            "correct": bool(np.isfinite(found).all() and labels[int(found.argmin())] == each.answers[0]),
        }
        for each, found in zip(asked, nats, strict=True)
    ]
    right = sum(row["correct"] for row in rows)
    low, high = wilson(right, len(rows))
    by_label = {label: _of_label(rows, label) for label in labels}
    extra = {
        "labels": by_label,
        "macro_f1": sum(found["f1"] for found in by_label.values()) / len(labels),
        "matthews": matthews(
            [row["label"] for row in rows], [row["predicted"] if not row["too_long"] else "" for row in rows]
        ),
        "too_long": sum(row["too_long"] for row in rows),
        "baselines": {"most_frequent_label": max(found["items"] for found in by_label.values()) / len(rows)},
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


def matthews(true: Sequence[str], given: Sequence[str]) -> float:
    """The correlation of two labellings, −1 to 1; 0 where one has a single label (Gorodkin 2004, eq. 8)."""
    n, hits = len(true), sum(a == b for a, b in zip(true, given, strict=True))
    here, there = Counter(true), Counter(given)
    product = sum(here[label] * there[label] for label in here)
    spread = (n * n - sum(count**2 for count in there.values())) * (n * n - sum(count**2 for count in here.values()))
    return (n * hits - product) / math.sqrt(spread) if spread else 0.0


def spans(context: Context, asked: Sequence[Asked], comparison_key: dict[str, Any]) -> Score:
    """The mean F1 of words in common with the nearest right answer over `evaluate.items` questions chosen by hash,
    bootstrapped."""
    chosen = _chosen(context, asked)
    rows = []
    for each, text in zip(chosen, written(context, chosen), strict=True):
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
    limits = {"items": context.recipe.evaluate.items, "new_tokens": NEW_TOKENS}
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


def answered(context: Context, asked: Sequence[Asked], comparison_key: dict[str, Any]) -> Score:
    """Bits per byte of the assistant's words, of all examples within the context; greedy answers to `evaluate.items` of
    them beside it."""
    rendered = [render_conversation(with_answer(each.question, each.answers[0]), context.tokenizer) for each in asked]
    fits = [number for number, each in enumerate(rendered) if len(each.tokens) <= context.network.config.context]
    if not fits:
        return Score(
            "bits per byte of answers",
            None,
            None,
            None,
            0,
            False,
            comparison_key,
            not_applicable="every example is longer than the context",
        )
    bits = np.array(nats_of(context, [rendered[number] for number in fits], "answers")) / math.log(2)
    sizes = np.array([_counted_bytes(context, rendered[number]) for number in fits])
    chosen = _chosen(context, asked)
    texts = dict(zip((each.id for each in chosen), zip(chosen, written(context, chosen), strict=True), strict=True))
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


def _chosen(context: Context, asked: Sequence[Asked]) -> list[Asked]:
    """`evaluate.items` of the examples, by the hash of their question."""
    return sorted(asked, key=lambda each: hash_json(each.question))[: context.recipe.evaluate.items]


def _shown(each: Asked, text: str | None) -> dict[str, Any]:
    """What the report shows of an answer that was written."""
    return {
        "prompt": "\n\n".join(turn["content"] for turn in each.question) + "\n\n",
        "completion": text or "",
        "answer": each.answers[0],
    }


def written(context: Context, asked: Sequence[Asked]) -> list[str | None]:
    """The model's greedy answers, without blanks around them; None where question and answer would not fit into the
    context."""
    tokenizer, length = context.tokenizer, context.network.config.context
    new = min(NEW_TOKENS, length // 4)
    prompts = [render_chat(each.question, tokenizer) for each in asked]
    sampling = Sampling(max_tokens=new, temperature=0.0, stop_ids=stop_tokens(tokenizer))
    found: list[str | None] = [None] * len(asked)
    order = sorted(
        (number for number, prompt in enumerate(prompts) if len(prompt) + new <= length),
        key=lambda number: len(prompts[number]),
    )
    with Bar("evaluate", len(order), "answers") as bar:
        for start in range(0, len(order), BATCH_ROWS):
            group = order[start : start + BATCH_ROWS]
            tokens: list[list[int]] = [[] for _ in group]
            for step in decode(context.network, [prompts[number] for number in group], [sampling] * len(group)):
                for drawn in step:
                    if drawn.finish != "stop":
                        tokens[drawn.row].append(drawn.token)
            for number, each in zip(group, tokens, strict=True):
                text = tokenizer.decode(each)
                found[number] = text[
                    : min((at for stop in STOP if (at := text.find(stop)) >= 0), default=len(text))
                ].strip()
            bar.step(len(group))
    return found


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and needless blanks, as SQuAD's own script compares answers."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def word_f1(given: str, right: str) -> float:
    """The harmonic mean of precision and recall of words; where one has none, 1 if the other has none either (SQuAD
    2.0)."""
    one, other = normalised(given).split(), normalised(right).split()
    if not one or not other:
        return float(one == other)
    return 2 * sum((Counter(one) & Counter(other)).values()) / (len(one) + len(other))
