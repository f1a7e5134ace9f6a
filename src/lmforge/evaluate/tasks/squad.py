"""SQuAD 2.0 by writing: a paragraph and a question, a greedy answer, "unanswerable" where the paragraph does not tell.

    pack ─▶ prompt, after answered questions where wanted ─▶ a line ─▶ official exact and F1 (`evaluate.squad_metrics`)

The score is F1; beside it what answering nothing gets, which is the share of questions without an answer. Nothing
written is no answer, as the official script has it; a question longer than the model reads is answered wrongly.
Fine-tuned: `evaluate.spans`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from lmforge.corpus.labelled import NO_ANSWER
from lmforge.errors import InputError
from lmforge.evaluate.leaked_items import leaked_items
from lmforge.evaluate.packs import find_pack
from lmforge.evaluate.squad import DEV, PACK, Question, gold_of, scored_questions, training_questions
from lmforge.evaluate.squad_metrics import normalised, official, raw_scores
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, is_number, register
from lmforge.evaluate.writing import Writing, write
from lmforge.intervals import bootstrap_ratio
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json, write_atomic
from lmforge.tokens.chat import has_chat_tokens, render_chat

FORMAT = 1
INSTRUCTION = f'Answer with words of the context, or with "{NO_ANSWER}" where the context does not tell.'
PROTOCOL = "the dev articles at hand; written answers, no fine-tuning; published figures are of the hidden test set"
SHOWN = 64  # training questions that answered ones are chosen from


class SquadSettings(TaskSettings):
    """Settings of `squad2`; `limit` counts questions, chosen by their hash."""

    shots: NonNegativeInt = 0  # answered questions before each, every second one without an answer
    new_tokens: Positive = 32  # that an answer may have
    chat: bool = False  # asked as a turn of a conversation, where the vocabulary has these


@register
class Squad2(Task[SquadSettings]):
    """SQuAD 2.0's dev part (Rajpurkar et al. 2018)."""

    name = "squad2"
    settings = SquadSettings
    family = "squad"

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Every question."""
        return {}

    def texts(self, settings: SquadSettings) -> Iterable[str]:
        """Paragraphs and questions, for the corpus to keep out."""
        questions = scored_questions(settings.limit)
        yield from dict.fromkeys(each.context for each in questions)
        yield from (each.question for each in questions)

    def run(self, context: Context, settings: SquadSettings) -> Score:
        """Ask every question."""
        asked = scored_questions(settings.limit)
        shown = shots_of(settings.shots)
        prompts = [_prompt(context, each, shown, settings.chat) for each in asked]
        how = Writing(settings.new_tokens, () if settings.chat else ("\n",), seed=SEED)
        texts = [samples[0] for samples in write(context, prompts, how, self.name)]
        length = context.network.config.context
        too_long = {each.id for each, prompt in zip(asked, prompts, strict=True) if len(prompt) >= length}
        given = {each.id: answer_in(text) for each, text in zip(asked, texts, strict=True)}
        rows = _rows(asked, texts, given, too_long)
        if (context.corpus_dir / "documents").is_dir():
            leaked = leaked_items({each.id: [each.context, each.question] for each in asked}, context.corpus_dir)
            rows = [{**row, "leaked": row["id"] in leaked} for row in rows]
        if context.items_dir is not None:
            path = context.items_dir / f"{self.name}.predictions.json"
            write_atomic(path, json.dumps(given, ensure_ascii=False) + "\n")
        key = {
            "data": {"pack": find_pack(PACK).split(DEV).sha256, "items": hash_json([each.id for each in asked])},
            "prompts": hash_json([list(prompt) for prompt in prompts]),
            "decoding": {"greedy": True, "new_tokens": settings.new_tokens},
            "shots": len(shown),
            "code": FORMAT,
        }
        # the official figures know of no question that cannot be read: it is answered with what is never right
        figures = official(gold_of(asked), {name: _NEVER if name in too_long else text for name, text in given.items()})
        return _score(rows, key, figures)

    def headline(self, score: Content) -> str:
        """F1 in percent beside what answering nothing gets."""
        value = score.get("value")
        if not is_number(value):
            return ""
        baselines = score.get("baselines")
        nothing = baselines.get("no_answer") if isinstance(baselines, dict) else None
        return f"{self.name} F1 {100 * value:.1f}" + (f" (nothing: {100 * nothing:.1f})" if is_number(nothing) else "")

    def beside(self, score: Content) -> Mapping[str, Any]:
        """Exact answers, F1 of both kinds of question, and the baseline."""
        other = score.get("beside")
        return {**(other if isinstance(other, dict) else {}), **super().beside(score)}


_NEVER = "\N{REPLACEMENT CHARACTER}"


def shots_of(count: int) -> list[Question]:
    """So many training questions to show answered, the first with an answer, the next without, and so on.

    Raises:
        InputError: the pack has no such questions, or not so many.
    """
    if not count:
        return []
    questions = training_questions(max(SHOWN, 4 * count))
    kinds = [[each for each in questions if bool(each.answers) is answered] for answered in (True, False)]
    shown = [kinds[number % 2][number // 2] for number in range(count) if number // 2 < len(kinds[number % 2])]
    if len(shown) < count:
        raise InputError(f"squad2: shots = {count}, but the pack's training part has too few questions of a kind")
    return shown


def answer_in(text: str) -> str:
    """The answer that a text gives: "" where it says that there is none, or says nothing."""
    answer = text.strip()
    return "" if normalised(answer).startswith(NO_ANSWER) else answer


def _prompt(context: Context, question: Question, shown: Sequence[Question], chat: bool) -> list[int]:
    tokenizer = context.tokenizer
    asked = [f"Context: {each.context}\nQuestion: {each.question.strip()}" for each in (*shown, question)]
    said = [each.answers[0].text if each.answers else NO_ANSWER for each in shown]
    if chat and has_chat_tokens(tokenizer):
        asked = [f"{INSTRUCTION}\n\n{each}" for each in asked]
        turns = [
            {"role": role, "content": text}
            for pair in zip(asked, said, strict=False)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return list(render_chat([*turns, {"role": "user", "content": asked[-1]}], tokenizer))
    before = "".join(f"{one}\nAnswer: {answer}\n\n" for one, answer in zip(asked, said, strict=False))
    return tokenizer.encode_document(f"{INSTRUCTION}\n\n{before}{asked[-1]}\nAnswer:")


def _rows(
    asked: Sequence[Question], texts: Sequence[str], given: Mapping[str, str], too_long: set[str]
) -> list[dict[str, Any]]:
    scores = raw_scores(gold_of(asked), given)
    rows = []
    for each, text in zip(asked, texts, strict=True):
        exact, f1 = (0.0, 0.0) if each.id in too_long else scores[each.id]
        answers = list(dict.fromkeys(answer.text for answer in each.answers)) or [NO_ANSWER]
        rows.append(
            {
                "id": each.id,
                "part": "HasAns" if each.answers else "NoAns",
                "prompt": f"Context: {each.context}\nQuestion: {each.question}\nAnswer:",
                "completion": text,
                "answer": " | ".join(answers),
                "given": given[each.id],
                "exact": exact,
                "f1": f1,
                "too_long": each.id in too_long,
            }
        )
    return rows


def _score(rows: list[dict[str, Any]], key: dict[str, Any], figures: Mapping[str, float]) -> Score:
    value, low, high = _mean(rows)
    parts = {}
    for part in ("HasAns", "NoAns"):
        if own := [row for row in rows if row["part"] == part]:
            mean, *interval = _mean(own)
            parts[part] = {"value": mean, "low": interval[0], "high": interval[1], "items": len(own)}
    nothing = np.array([float(row["part"] == "NoAns") for row in rows])
    f1 = np.array([row["f1"] for row in rows])
    above = bootstrap_ratio(f1 - nothing, np.ones(len(rows)), SEED) or (None, None)
    extra = {
        "official": dict(figures),
        "parts": parts,
        "baselines": {"no_answer": float(nothing.mean())},
        "above_baseline": {"value": float((f1 - nothing).mean()), "low": above[0], "high": above[1]},
        "beside": {
            "exact": figures["exact"] / 100,
            **{f"F1 of {part}": own["value"] for part, own in parts.items()},
            "F1 of no answer": float(nothing.mean()),
        },
        "too_long": sum(row["too_long"] for row in rows),
        "protocol": PROTOCOL,
    }
    clean: dict[str, Any] = {}
    if any("leaked" in row for row in rows):
        left = [row for row in rows if not row["leaked"]]
        clean = dict(zip(("clean_value", "clean_low", "clean_high"), _mean(left), strict=True)) if left else {}
        clean["leaked_share"] = 1 - len(left) / len(rows)
    return Score("F1", value, low, high, len(rows), True, key, extra, rows, ("f1", ""), clean)


def _mean(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float | None, float | None]:
    f1 = np.array([row["f1"] for row in rows])
    low, high = bootstrap_ratio(f1, np.ones(len(rows)), SEED) or (None, None)
    return float(f1.mean()), low, high
