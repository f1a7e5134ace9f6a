"""SQuAD 2.0's questions, and which of them are learned from, which the threshold is chosen on, and which are scored.

    pack squad: train_v2 (else train_v1) ─▶ learned ┬─ a share of its articles ─▶ threshold
                dev_v2 ─▶ scored                    └─ the rest ─▶ fine-tuning

A pack without 2.0's training part has no unanswerable question to learn from. Half of the training questions are then
put to another paragraph of their article, the one with most of the question's words, in which no right answer stands
(as in the retrieved negatives of Clark and Gardner 2018, section 3.2); and a share of the dev articles may be learned
from (`learn_dev`), which then are not scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lmforge.errors import InputError
from lmforge.evaluate.packs import Row, find_pack, open_pack
from lmforge.evaluate.squad_metrics import normalised
from lmforge.record import hash_json

PACK, DEV, TRAIN, TRAIN_ANSWERED = "squad", "dev_v2", "train_v2", "train_v1"
CHOSEN_SHARE, MOST_CHOSEN = 0.15, 2000  # of the articles learned from, and of their questions, for the threshold


class Answer(NamedTuple):
    """An answer and its first character's place in the context."""

    text: str
    start: int


class Question(NamedTuple):
    """A question with its paragraph; no answers where the paragraph does not tell."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Questions by their use; `said` tells where they come from."""

    learned: list[Question]
    threshold: list[Question]
    scored: list[Question]
    said: dict[str, object]


def questions_of(rows: Iterable[Row]) -> Iterator[Question]:
    """The questions of articles, in their order; one marked impossible has no answers.

    Raises:
        InputError: a row that is no article.
    """
    for number, row in enumerate(rows, 1):
        try:
            for paragraph in row["paragraphs"]:
                for asked in paragraph["qas"]:
                    given = () if asked.get("is_impossible") else asked["answers"]
                    answers = tuple(Answer(each["text"], int(each["answer_start"])) for each in given)
                    yield Question(asked["id"], row["title"], paragraph["context"], asked["question"], answers)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"pack {PACK}, row {number}: no article of SQuAD's form ({error!r}); make the pack again: lmforge "
                f"packs fetch {PACK}"
            ) from error


def official_file(questions: Sequence[Question]) -> dict[str, object]:
    """Questions in the form of the official data file, one paragraph each, for the official script."""
    data = []
    for each in questions:
        answers = [{"text": answer.text, "answer_start": answer.start} for answer in each.answers]
        asked = {"id": each.id, "question": each.question, "answers": answers, "is_impossible": not answers}
        data.append({"title": each.title, "paragraphs": [{"context": each.context, "qas": [asked]}]})
    return {"version": "v2.0", "data": data}


def gold_of(questions: Iterable[Question]) -> dict[str, list[str]]:
    """The right answers by id, as `squad_metrics` takes them."""
    return {each.id: [answer.text for answer in each.answers] for each in questions}


def some_of(questions: Sequence[Question], most: int | None) -> list[Question]:
    """So many of them, those of the smallest hashes, in their order; all without a number."""
    if most is None or most >= len(questions):
        return list(questions)
    kept = {each.id for each in sorted(questions, key=lambda each: hash_json(each.id))[:most]}
    return [each for each in questions if each.id in kept]


def scored_questions(limit: int | None = None) -> list[Question]:
    """Those of 2.0's dev part.

    Raises:
        InputError: the pack is not here.
    """
    return some_of(list(questions_of(open_pack(PACK, DEV))), limit)


def training_questions(most: int | None = None) -> list[Question]:
    """Those of 2.0's training part or, where the pack has none, of 1.1's, half of them put to a paragraph without an
    answer.

    Raises:
        InputError: the pack is not here, or has neither.
    """
    files = find_pack(PACK).files
    if TRAIN in files:
        return some_of(list(questions_of(open_pack(PACK, TRAIN))), most)
    if TRAIN_ANSWERED not in files:
        raise InputError(f"pack {PACK}: no part to learn from; make another copy of it: lmforge packs fetch {PACK}")
    questions = list(questions_of(open_pack(PACK, TRAIN_ANSWERED)))
    return half_unanswerable(some_of(questions, most), paragraphs_of(questions))


def paragraphs_of(questions: Iterable[Question]) -> dict[str, dict[str, frozenset[str]]]:
    """Every article's paragraphs with their words, by title."""
    found: dict[str, dict[str, frozenset[str]]] = {}
    for each in questions:
        own = found.setdefault(each.title, {})
        if each.context not in own:
            own[each.context] = frozenset(normalised(each.context).split())
    return found


def half_unanswerable(
    questions: Sequence[Question], paragraphs: Mapping[str, Mapping[str, frozenset[str]]]
) -> list[Question]:
    """Every second question, by hash, put to another paragraph of its article that has most of its words and none of
    its answers; a question whose article has no such paragraph stays as it is."""
    moved = {each.id for each in sorted(questions, key=lambda each: hash_json([each.id, "moved"]))[::2]}
    return [_moved(each, paragraphs[each.title]) if each.id in moved else each for each in questions]


def _moved(question: Question, paragraphs: Mapping[str, frozenset[str]]) -> Question:
    words = set(normalised(question.question).split())
    right = [normalised(answer.text) for answer in question.answers]
    nearest = sorted(
        (context for context in paragraphs if context != question.context),
        key=lambda context: (-len(words & paragraphs[context]), context),
    )
    for context in nearest:
        text = normalised(context)
        if not any(answer in text for answer in right):
            return question._replace(context=context, answers=())
    return question


def parts_of(examples: int | None = None, items: int | None = None, learn_dev: float = 0.0) -> Parts:
    """Questions for fine-tuning, by use. `examples`: most that are learned from, `items`: most that are scored;
    `learn_dev`: the share of dev articles learned from instead of scored. Where dev articles are learned from, the
    threshold is chosen on some of these, whose unanswerable questions people wrote; else on some of the training part.

    Raises:
        InputError: the pack is not here, or a share that leaves nothing on one side.
    """
    dev, own = scored_questions(), list[Question]()
    if learn_dev:
        own, dev = _by_article(dev, learn_dev)
        if not own or not dev:
            raise InputError(f"learn_dev = {learn_dev}: no article is left to learn from or to score; give 0 to 1")
    if own:
        threshold, own = _by_article(own, CHOSEN_SHARE)
        left = None if examples is None else max(0, examples - len(own))
        learned = [*some_of(own, examples), *training_questions(left)] if left != 0 else some_of(own, examples)
    else:
        room = None if examples is None else round(examples / (1 - CHOSEN_SHARE)) + 1
        threshold, learned = _by_article(training_questions(room), CHOSEN_SHARE)
        learned = some_of(learned, examples)
    threshold, scored = some_of(threshold, MOST_CHOSEN), some_of(dev, items)
    made = TRAIN not in find_pack(PACK).files
    said: dict[str, object] = {
        "pack": find_pack(PACK).version,
        "unanswerable questions learned from": (
            "made: questions of 1.1 put to other paragraphs" if made else "SQuAD 2.0's training part"
        ),
        "share of dev articles learned from, not scored": learn_dev,
    }
    for name, part in (("learned", learned), ("threshold", threshold), ("scored", scored)):
        said[name] = {"questions": len(part), "unanswerable": sum(not each.answers for each in part)}
        if not part:
            raise InputError(f"squad: no question is left for what is {name}; give more examples, or another pack")
    return Parts(learned, threshold, scored, said)


def _by_article(questions: Sequence[Question], share: float) -> tuple[list[Question], list[Question]]:
    """(that share of the articles, at least one; the others), by the hash of their titles; by paragraphs where there is
    one article."""
    whole = len({each.title for each in questions}) > 1
    names = {each: each.title if whole else each.context for each in questions}
    order = sorted(set(names.values()), key=hash_json)
    first = set(order[: max(1, round(share * len(order)))])
    return [each for each in questions if names[each] in first], [
        each for each in questions if names[each] not in first
    ]
