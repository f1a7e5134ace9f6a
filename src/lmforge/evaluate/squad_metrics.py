"""SQuAD 2.0's official figures (Rajpurkar et al. 2018, section 4.1; the published algorithm of evaluate-v2.0.py).

    answers by id, predictions {id: text, "" for none} ─▶ exact, f1, total; HasAns_…, NoAns_… (percent)
    and probabilities {id: that there is no answer}    ─▶ best_exact, best_f1, each with the threshold that reaches it

`evaluate.measures` has the like for texts of every script; here only ASCII's punctuation is left out, as there.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from lmforge.errors import InputError

Gold = Mapping[str, Sequence[str]]  # the right answers by the question's id; none where there is no answer
Probabilities = Mapping[str, float]
NO_THRESHOLD = 1.0  # the script's default: no probability lies above it
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and needless blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_of(right: str, given: str) -> float:
    """1 where both are alike once normalised, else 0."""
    return float(normalised(right) == normalised(given))


def f1_of(right: str, given: str) -> float:
    """The harmonic mean of precision and recall of words, 0 to 1; where one has no word, 1 if the other has none."""
    wanted, said = normalised(right).split(), normalised(given).split()
    if not wanted or not said:
        return float(wanted == said)
    common = sum((Counter(wanted) & Counter(said)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def raw_scores(gold: Gold, predictions: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """(exact, F1) of each question, against the nearest right answer; answers that normalise to nothing do not count.

    Raises:
        InputError: a question without a prediction (names it).
    """
    scores = {}
    for name, answers in gold.items():
        if name not in predictions:
            raise InputError(f"question {name}: no prediction; give every question's, '' for no answer")
        right = [answer for answer in answers if normalised(answer)] or [""]
        given = predictions[name]
        scores[name] = max(exact_of(each, given) for each in right), max(f1_of(each, given) for each in right)
    return scores


def with_threshold(
    scores: Mapping[str, float], no_answer: Probabilities, gold: Gold, threshold: float
) -> dict[str, float]:
    """Scores where a question counts as answered with nothing if its probability lies above the threshold."""
    return {
        name: float(not gold[name]) if no_answer.get(name, 0.0) > threshold else score for name, score in scores.items()
    }


def best_threshold(
    scores: Mapping[str, float], predictions: Mapping[str, str], no_answer: Probabilities, gold: Gold
) -> tuple[float, float]:
    """(the greatest percentage that any threshold reaches; the least such threshold).

    From no question answered, questions are answered in the order of their probabilities.
    """
    score = best = float(sum(not answers for answers in gold.values()))
    threshold = 0.0
    for name in sorted(no_answer, key=no_answer.__getitem__):
        if name not in scores:
            continue
        score += scores[name] if gold[name] else -1 if predictions[name] else 0
        if score > best:
            best, threshold = score, no_answer[name]
    return 100 * best / len(scores), threshold


def official(
    gold: Gold,
    predictions: Mapping[str, str],
    no_answer: Probabilities | None = None,
    threshold: float = NO_THRESHOLD,
) -> dict[str, float]:
    """Every figure under the script's own names, in percent; `best_…` only where there are probabilities.

    Raises:
        InputError: no questions; a question without a prediction or, where there are any, a probability.
    """
    if not gold:
        raise InputError("no questions to score; give at least one")
    raw = raw_scores(gold, predictions)
    if no_answer is not None and (missing := [name for name in gold if name not in no_answer]):
        raise InputError(f"question {missing[0]}: no probability of having no answer; give every question's")
    parts = {metric: {name: pair[place] for name, pair in raw.items()} for place, metric in enumerate(("exact", "f1"))}
    kept = {metric: with_threshold(own, no_answer or {}, gold, threshold) for metric, own in parts.items()}
    groups = {
        "": list(gold),
        "HasAns_": [name for name, answers in gold.items() if answers],
        "NoAns_": [name for name, answers in gold.items() if not answers],
    }
    result: dict[str, float] = {}
    for prefix, names in groups.items():
        if names:
            means = {prefix + key: 100 * sum(own[name] for name in names) / len(names) for key, own in kept.items()}
            result |= {**means, f"{prefix}total": len(names)}
    if no_answer is not None:
        for metric, own in parts.items():
            result[f"best_{metric}"], result[f"best_{metric}_thresh"] = best_threshold(
                own, predictions, no_answer, gold
            )
    return result
