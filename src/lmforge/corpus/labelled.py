"""Labelled examples → documents that are conversations: what a recipe with [finetune] learns from and is scored on.

    JSONL ─▶ Example (question, answers) ─▶ documents/{train,valid,test}-NNNNN.jsonl.zst, statistics.json
      chat       {"messages": […]}                              the assistant's words are the answers
      classify   {"text" …, "label"}, or a pair's two texts     the answer is the label's word
      span       {"question", "context", "answers"}, or SQuAD's articles     the answer stands in the context, or is
      `NO_ANSWER`

Every task is a conversation whose last turn is to be written (Raffel et al. 2020, section 2.4: one model and one loss
for all of them), so shards, loss mask, training, serving and export are those of any model. An example keeps its text
as it is: nothing is cleaned.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import orjson

from lmforge.corpus import scripts
from lmforge.corpus.shuffle import ShardWriter
from lmforge.corpus.sources.conversation import NotMessages, conversation_of, is_learned, messages_of
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.splits import SPLITS, split_at, unit
from lmforge.errors import InputError
from lmforge.progress import log
from lmforge.recipe import Finetune, Recipe
from lmforge.record import atomic_directory, hash_json

MOST_NAMED = 8  # of the examples that are left out
NO_ANSWER = "unanswerable"  # what a model is to write where the context does not tell
Messages = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation up to the last answer, the answers that are right (the first is learned), and where it stands:
    FILE:LINE."""

    question: Messages
    answers: tuple[str, ...]
    where: str

    @property
    def messages(self) -> Messages:
        """The whole conversation, answer included."""
        return [*self.question, {"role": "assistant", "content": self.answers[0]}]

    @property
    def key(self) -> str:
        """The hash of the question: equal questions fall into one split, and what is asked in the test is not
        learned."""
        return hash_json([{"role": turn["role"], "content": turn["content"]} for turn in self.question])

    def line(self, name: str) -> bytes:
        """As a line of a corpus file."""
        text = "\n\n".join(message["content"] for message in self.messages)
        meta = {"messages": self.messages, "answers": self.answers}
        return (
            orjson.dumps(
                {"id": name, "text": text, "source": name.rpartition(":")[0], "genre": "unknown", "meta": meta}
            )
            + b"\n"
        )


def build_examples(recipe: Recipe, out: Path, length: Callable[[Messages], int]) -> dict[str, Any]:
    """Make the corpus directory `out` from a recipe's examples and return its figures (also in its statistics.json).

    `length` gives the tokens of a conversation. Figures: the stable ones of a corpus (dropped: training examples that
    are asked in the test, or longer than the context where `finetune.long` skips them), and `examples`: task, labels
    {answer: examples} of a classification, `trained`, those of them that are learned from, tokens of the longest, and
    where the examples stand that are too long.

    Raises:
        InputError: a line that is no example, an unknown label, an example that is too long (names file and line), no
            examples for a split.
        LmforgeError: the disk is full. In every case `out` stays as it was.
    """
    settings = recipe.finetune
    assert settings is not None
    learned = list(read_examples(settings, settings.train))
    labels = Counter(example.answers[0] for example in learned) if settings.task == "classify" else Counter[str]()
    asked = list(read_examples(settings, settings.test, labels)) if settings.test else []
    selection = _select(recipe, learned, {example.key for example in asked}, length)
    dropped = selection.dropped
    splits = _split(selection.kept, asked, recipe.corpus.holdout, dropped)
    trained = Counter(example.answers[0] for example in splits["train"]) if labels else Counter[str]()
    with atomic_directory(out) as folder:
        sizes = {split: _write(folder / "documents", split, splits[split]) for split in SPLITS}
        text = [example for split in SPLITS for example in splits[split]]
        figures = {
            "documents_in": len(learned) + len(asked),
            "documents_out": len(text),
            "dropped": dict(sorted(dropped.items())),
            "bytes_out": sum(size["bytes"] for size in sizes.values()),
            "entropy": {},
            "notices": {},
            "splits": sizes,
            "words": sum(len(scripts.words(message["content"])) for example in text for message in example.messages),
            "examples": {
                "task": settings.task,
                "labels": dict(labels.most_common()),
                "trained": {label: trained[label] for label in labels},
                "longest": selection.longest,
                "too_long": selection.too_long,
            },
        }
        (folder / "statistics.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return figures


@dataclasses.dataclass
class _Selection:
    """Examples that can be learned from whole, why others cannot, the longest one's tokens, and where those stand that
    do not fit into a row."""

    kept: list[Example]
    dropped: Counter[str]
    longest: int = 0
    too_long: list[str] = dataclasses.field(default_factory=list)


def _select(
    recipe: Recipe, learned: Sequence[Example], asked: Set[str], length: Callable[[Messages], int]
) -> _Selection:
    """The examples that fit whole into a row and are not asked in the test, whose keys are given.

    Raises:
        InputError: one does not fit, and `finetune.long` is "refuse".
    """
    assert recipe.finetune is not None
    chosen, context = _Selection([], Counter()), recipe.tokens.context
    for example in learned:
        tokens = length(example.messages)
        if example.key in asked:
            chosen.dropped["in_test"] += 1
        elif tokens > context:
            if recipe.finetune.long == "refuse":
                raise InputError(
                    f"{example.where}: {tokens} tokens, more than tokens.context = {context}; raise it, shorten the "
                    "example, or leave out those that are too long with finetune.long = 'skip'"
                )
            chosen.dropped["too_long"] += 1
            chosen.too_long.append(example.where)
        else:
            chosen.kept.append(example)
            chosen.longest = max(chosen.longest, tokens)
    if chosen.too_long:
        names = ", ".join(chosen.too_long[:MOST_NAMED]) + (" …" if len(chosen.too_long) > MOST_NAMED else "")
        log(
            f"corpus: {len(chosen.too_long)} examples are longer than tokens.context = {context} tokens and are left "
            f"out whole: {names}"
        )
    return chosen


def _split(
    learned: Sequence[Example], asked: Sequence[Example], holdout: float, dropped: Counter[str]
) -> dict[str, list[Example]]:
    """Examples by split, decided by each one's question: of those held out half are for validation, and all where test
    examples are given."""
    bounds = (holdout, holdout) if asked else (holdout / 2, holdout)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in learned:
        splits[split_at(unit(hashlib.sha256(example.key.encode()).digest()[:8]), bounds)].append(example)
    splits["test"] += asked
    if empty := [split for split in SPLITS if not splits[split]]:
        why = "".join(f", {number} {reason}" for reason, number in dropped.items())
        raise InputError(
            f"finetune.train: {len(learned)} examples are left{why}, and none of them for the {empty[0]} split; "
            f"add examples, or change corpus.holdout (now {holdout})"
        )
    return splits


def _write(folder: Path, split: str, examples: Iterable[Example]) -> dict[str, int]:
    writer = ShardWriter(folder, split)
    seen: Counter[str] = Counter()  # examples of a line, which may hold a whole article's
    for example in examples:
        path, _, place = example.where.rpartition(":")
        name = f"{Path(path).name}:{place}"
        line = example.line(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
        writer.write(line, sum(len(message["content"].encode("utf-8", "replace")) for message in example.messages))
    writer.close()
    return {"documents": writer.documents, "bytes": writer.bytes}


def read_examples(settings: Finetune, path: Path, labels: Iterable[str] | None = None) -> Iterator[Example]:
    """The examples of a file, in its order. With `labels`, other answers of a classification are refused.

    Raises:
        InputError: a line that is no example of the task; says which, and what is missing.
    """
    make = {"chat": _chat, "classify": _classify, "span": _span}[settings.task]
    known = None if labels is None else set(labels)
    count = 0
    for number, line in lines_of(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error}); give one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: a {type(record).__name__}, not an object; give one object a line")
        for example in make(settings, record, where):
            count += 1
            if settings.task == "classify" and known is not None and example.answers[0] not in known:
                raise InputError(
                    f"{where}: label {example.answers[0]!r} is none of the {len(known)} of finetune.train "
                    f"({', '.join(sorted(known)[:8])}); correct it, or map it with finetune.labels"
                )
            yield example
    if not count:
        raise InputError(f"{path}: no examples in it; give a file of one JSON object a line")


def _field(record: dict[str, Any], name: str, where: str, key: str) -> Any:
    if record.get(name) is None:
        close = difflib.get_close_matches(name, record, n=1, cutoff=0.6)
        near = f"; did you mean '{close[0]}'?" if close and name not in record else ""
        if name in record:
            raise InputError(f"{where}: field '{name}' is null; correct the line or remove it")
        raise InputError(
            f"{where}: no field '{name}' (it has {', '.join(map(str, record)) or 'none'}){near} {key}".rstrip()
        )
    return record[name]


def _text(record: dict[str, Any], name: str, where: str, key: str) -> str:
    value = _field(record, name, where, key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where}: field '{name}' is "
            f"{'empty' if isinstance(value, str) else f'a {type(value).__name__}, not a string'}; correct it"
        )
    return value


def _asked(settings: Finetune, text: str) -> Messages:
    return [{"role": "user", "content": f"{settings.instruction}\n{text}" if settings.instruction else text}]


def _chat(settings: Finetune, record: dict[str, Any], where: str) -> Iterator[Example]:
    """A conversation; what follows the last of the assistant's turns that is learned is left out."""
    try:
        turns = conversation_of(record, "messages")
        if turns is None:
            turns = messages_of(_field(record, "messages", where, ""), "messages")
    except NotMessages as error:
        raise InputError(f"{where}: {error}") from error
    ends = [number for number, turn in enumerate(turns) if is_learned(turn)]
    if not ends or not ends[-1]:
        raise InputError(
            f"{where}: messages hold no answer of the assistant to anything that is learned (whose weight is not 0); "
            "give at least a user's turn and the assistant's"
        )
    if not turns[ends[-1]]["content"].strip():
        raise InputError(
            f"{where}: messages[{ends[-1]}], the assistant's answer, is empty; write it or remove the line"
        )
    before = turns[: ends[-1]]
    first = (
        [{"role": "system", "content": settings.instruction}]
        if settings.instruction and before[0]["role"] != "system"
        else []
    )
    yield Example(first + before, (turns[ends[-1]]["content"],), where)


def _classify(settings: Finetune, record: dict[str, Any], where: str) -> Iterator[Example]:
    """One text as it is, several each after its field's name; the answer is the label's word."""
    texts = [_text(record, name, where, "set finetune.fields") for name in settings.fields]
    shown = (
        texts[0]
        if len(texts) == 1
        else "\n".join(f"{name}: {text}" for name, text in zip(settings.fields, texts, strict=True))
    )
    value = _field(record, settings.label, where, "set finetune.label")
    label = _label(value, where)
    if settings.labels and label not in settings.labels:
        raise InputError(
            f"{where}: label {label!r} is not in finetune.labels ({', '.join(settings.labels)}); add it or "
            "correct the line"
        )
    yield Example(_asked(settings, shown), (settings.labels.get(label, label),), where)


def _label(value: Any, where: str) -> str:
    """A label as the data writes it: a string, or JSON's spelling of true, false or a number; without blanks around it,
    which an answer is not told apart by."""
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: label {value!r} is a {type(value).__name__}; give strings, numbers, true or false")
    label = value.strip() if isinstance(value, str) else orjson.dumps(value).decode()
    if not label:
        raise InputError(
            f"{where}: the label is empty; a model cannot answer with nothing: name it, or remove the line"
        )
    return label


def _span(settings: Finetune, record: dict[str, Any], where: str) -> Iterator[Example]:
    """A question and its context, or an article of them as SQuAD has it, or its official file on one line."""
    if isinstance(record.get("data"), list):
        for article in record["data"]:
            yield from _span(settings, article, where)
    elif isinstance(record.get("paragraphs"), list):
        for paragraph in record["paragraphs"]:
            for asked in _field(paragraph, "qas", where, ""):
                yield from _span(settings, {"context": paragraph.get("context"), **asked}, where)
    else:
        question, context = (_text(record, name, where, "") for name in ("question", "context"))
        answers = _answers(record, where)
        for answer in answers:
            if answer not in context:
                raise InputError(
                    f"{where}: the answer {answer[:60]!r} does not stand in the context; correct it, or give no answers"
                )
        shown = f"Question: {question}\nContext: {context}"
        yield Example(_asked(settings, shown), answers or (NO_ANSWER,), where)


def _answers(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """The distinct answers of a question: a string, strings, [{"text"}] or {"text": […]}; none where it has no
    answer."""
    given = record["answer"] if isinstance(record.get("answer"), str) else _field(record, "answers", where, "")
    if record.get("is_impossible") is True:
        return ()
    listed = given.get("text") if isinstance(given, dict) else [given] if isinstance(given, str) else given
    texts = (
        [each.get("text") if isinstance(each, dict) else each for each in listed]
        if isinstance(listed, list)
        else [None]
    )
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f'{where}: answers are not texts, like ["in 1066"] or {{"text": ["in 1066"], "answer_start": [12]}}; '
            "correct them"
        )
    return tuple(dict.fromkeys(map(str, texts)))
