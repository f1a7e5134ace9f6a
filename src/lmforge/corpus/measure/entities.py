"""People, places, organisations and dates: a recogniser that learns its gazetteer from the texts it reads, from a few
seeds.

    texts ─▶ how often each word is capitalised ─▶ runs of capitalised words ─▶ a type for each distinct name ─▶
    mentions
                                                        seeds ─▶ naive Bayes ─▶ again, with its own sure answers as
                                                        seeds

In the manner of Collins & Singer 1999, "Unsupervised Models for Named Entity Classification": the seeds
(`lmforge.corpus.measure.gazetteer`) label some names; what stands in and around these tells the types of the others,
pooled over all places where a name stands. English.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmforge.corpus.measure import gazetteer

# "other" (nations' adjectives, works, brands) is told apart, then left out
TYPES = ("person", "place", "organisation", "other")
ROUNDS = 2
SURE = 0.99  # posterior at which a name becomes a seed of the next round
SMOOTHING = 0.5
MOST_CONTEXTS = 20  # places of one name that speak for its type
NAME_SHARE = 0.6  # a word is a name where it is capitalised in at least this share of its places within sentences
HEADING = 0.7  # share of capitalised words at which a line of four or more is a heading, and its capitals tell nothing
SHOWN = 10  # most frequent names shown

_TOKEN = re.compile(
    r"(?:[A-Z]\.){2,}|(?:Mr|Mrs|Ms|Dr|Prof|Gen|Col|Capt|Lt|Sgt|Sen|Rep|Gov|Rev|St|Inc|Corp|Ltd|Co|[A-Z])\.(?=\s)"
    r"|[^\W_]+(?:[-&’'.@][^\W_]+)*|\n|[^\w\s]"
)
# within one name
_CONNECTORS = frozenset(("of", "de", "la", "von", "van", "der", "den", "al", "bin", "du", "del", "da", "di", "&"))
_OPENERS = frozenset('.!?\n"“”‘:;•*-–—([>|#…')
_CALENDAR = gazetteer.MONTHS | gazetteer.DAYS
_MONTH = "(?:" + "|".join(sorted(gazetteer.MONTHS, key=len, reverse=True)) + r")\b\.?"
_YEAR = r"(?:1[0-9]|20)\d\d"
_DATE = re.compile(
    rf"\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? {_YEAR}\b)?|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? "
    rf"{_YEAR}\b)?|\b{_MONTH},? {_YEAR}\b"
    rf"|\b{_YEAR}[-/]\d{{1,2}}[-/]\d{{1,2}}\b|\b\d{{1,2}}[-/]\d{{1,2}}[-/](?:{_YEAR}|\d\d)\b|(?<![\d][.,])\b{_YEAR}s?\b(?![\d.,]\d)"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th) century\b"
)


@dataclasses.dataclass(frozen=True)
class Mention:
    """Characters [start, stop) of a text name something of a type: a person, place, organisation or date."""

    start: int
    stop: int
    type: str
    name: str


@dataclasses.dataclass(frozen=True)
class _Found:
    """A run of capitalised words and what stands around it."""

    start: int
    stop: int
    words: tuple[str, ...]
    context: tuple[str, ...]


class Recogniser:
    """Made from texts with `learn`; `mentions` then finds names in these or other texts."""

    def __init__(
        self, capitalised: Counter[str], lower: Counter[str], types: dict[tuple[str, ...], str], bayes: _Bayes
    ) -> None:
        self._capitalised, self._lower, self._types, self._bayes = capitalised, lower, types, bayes

    @classmethod
    def learn(cls, texts: Sequence[str]) -> Recogniser:
        """Two passes over the texts: capitals, then names and what stands around them."""
        capitalised, lower = _capitals(texts)
        features: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        places: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            for matched in _candidates(text, capitalised, lower):
                places[matched.words] += 1
                if places[matched.words] <= MOST_CONTEXTS:
                    features[matched.words].update(matched.context)
        for words, counted in features.items():
            counted.update(_inside(words))
        types, bayes = _typed(features)
        return cls(capitalised, lower, types, bayes)

    def mentions(self, text: str) -> list[Mention]:
        """Names and dates of a text in order, none within another."""
        dates = [Mention(matched.start(), matched.end(), "date", matched.group()) for matched in _DATE.finditer(text)]
        matched = dates + [mention for mention in self._names(text) if mention.type != "other"]
        kept: list[Mention] = []
        for mention in sorted(matched, key=lambda mention: (mention.start, -mention.stop)):
            if not kept or mention.start >= kept[-1].stop:
                kept.append(mention)
        return kept

    def _names(self, text: str) -> Iterator[Mention]:
        for matched in _candidates(text, self._capitalised, self._lower):
            kind = _seed(matched.words, matched.context) or self._types.get(matched.words)
            if kind is None:
                kind, _ = self._bayes.judge([*_inside(matched.words), *matched.context])
            yield Mention(matched.start, matched.stop, kind, text[matched.start : matched.stop])


def entity_figures(texts: Sequence[str]) -> dict[str, Any]:
    """Numbers of distinct people, places, organisations and dates in a sample, with the most frequent of each.

    `at_least` estimates how many there would be in endless text of this kind: S + f1 (f1 - 1) / (2 (f2 + 1)), f1 and f2
    of the S seen having been seen once and twice (Chao 1984, bias-corrected): a lower bound.
    """
    recogniser = Recogniser.learn(texts)
    names: dict[str, Counter[str]] = {kind: Counter() for kind in (*TYPES[:3], "date")}
    for text in texts:
        for mention in recogniser.mentions(text):
            names[mention.type][" ".join(mention.name.split())] += 1
    figures: dict[str, Any] = {
        "definition": "distinct names by a recogniser that learns from the sample (capitals, a seed "
        "gazetteer, contexts; accuracy in docs/benchmarks.md); at_least: lower bound for endless text of this kind "
        "(Chao 1984); English, code left out",
        "sample_bytes": sum(len(text.encode()) for text in texts),
    }
    for kind, counts in names.items():
        once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
        top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
        figures[kind] = {
            "distinct": len(counts),
            "mentions": counts.total(),
            "at_least": round(len(counts) + once * (once - 1) / (2 * (twice + 1))),
            "top": [list(pair) for pair in top],
        }
    return figures


def _lines(text: str) -> Iterator[list[tuple[str, int, bool]]]:
    """(token, its place, whether a sentence begins with it) for each token of each line that is no heading."""
    line: list[tuple[str, int, bool]] = []
    opens = True
    for matched in _TOKEN.finditer(text):
        token = matched.group()
        if token == "\n":
            if line and not _is_heading(line):
                yield line
            line, opens = [], True
            continue
        line.append((token, matched.start(), opens))
        opens = token in _OPENERS
    if line and not _is_heading(line):
        yield line


def _is_heading(line: list[tuple[str, int, bool]]) -> bool:
    letters = [token for token, _, _ in line if token[0].isalpha()]
    return len(letters) >= 4 and sum(token[0].isupper() for token in letters) > HEADING * len(letters)


def _capitals(texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word, in small letters, stands capitalised and not, within sentences."""
    capitalised: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for text in texts:
        for line in _lines(text):
            for token, _, opens in line:
                if token[0].isupper() and not opens:
                    capitalised[token.lower()] += 1
                elif token[0].islower():
                    lower[token] += 1
    return capitalised, lower


def _candidates(text: str, capitalised: Counter[str], lower: Counter[str]) -> Iterator[_Found]:
    """Maximal runs of words that are names by their capitals, "of" and the like allowed between them."""

    def is_name(token: str, opens: bool) -> bool:
        if not token[0].isupper() or token == "I" or token.rstrip(".") in _CALENDAR:
            return False
        word = token.lower()
        stem = word.replace("’", "'").split("'")[0]  # of "I'm", "they'd"
        if word in gazetteer.SMALL_WORDS or (stem != word and (stem == "i" or stem in gazetteer.SMALL_WORDS)):
            return False
        up, down = capitalised[word], lower[word]
        if opens:
            return up > 0 and up >= NAME_SHARE * (up + down)
        return token.isupper() or up >= NAME_SHARE * (up + down) / 2

    for line in _lines(text):
        place = 0
        while place < len(line):
            if not is_name(line[place][0], line[place][2]):
                place += 1
                continue
            stop = place + 1
            while stop < len(line):
                if (
                    line[stop][0][0].isupper()
                    and not line[stop][2]
                    and line[stop][0].lower() not in gazetteer.SMALL_WORDS
                ):
                    stop += 1
                elif line[stop][0] in _CONNECTORS and stop + 1 < len(line) and line[stop + 1][0][0].isupper():
                    stop += 2
                else:
                    break
            matched = _found(line, place, stop)
            if len(matched.words) > 1 or len(matched.words[0].rstrip(".")) > 1:
                yield matched
            place = stop


def _found(line: list[tuple[str, int, bool]], place: int, stop: int) -> _Found:
    words = [token for token, _, _ in line[place:stop]]
    before = [token.lower() for token, _, _ in line[max(0, place - 2) : place]]
    after = [token.lower() for token, _, _ in line[stop : stop + 2]]
    context = [f"<{before[-1]}" if before else "<", f">{after[0]}" if after else ">"]
    context += [f"<<{' '.join(before)}", f">>{' '.join(after)}"]
    # a title speaks for a person and is no part of the name
    while len(words) > 1 and words[0].rstrip(".") in gazetteer.TITLES:
        context.append("title")
        words, place = words[1:], place + 1
    last = words[-1]
    end = line[stop - 1][1] + len(last)
    if last[-2:] in ("'s", "’s"):
        words[-1], end = last[:-2], end - 2
        context.append("'s")
    return _Found(line[place][1], end, tuple(words), tuple(context))


def _inside(words: tuple[str, ...]) -> list[str]:
    """Features of the name itself."""
    lower = [word.lower().rstrip(".") for word in words]
    matched = [f"words {min(len(words), 4)}", f"ends {lower[-1][-3:]}"]
    if len(words) > 1:
        matched += [f"first {lower[0]}", f"last {lower[-1]}"]
    if all(word.isupper() for word in words):
        matched.append("capitals")
    return matched


def _seed(words: tuple[str, ...], context: Iterable[str]) -> str | None:
    """The type that the gazetteer gives, or none."""
    name, first, last = " ".join(words), words[0].rstrip("."), words[-1].rstrip(".")
    if name in gazetteer.PLACES:
        return "place"
    if name in gazetteer.ORGANISATIONS or (len(words) > 1 and last in gazetteer.ORGANISATION_HEADS):
        return "organisation"
    if name in gazetteer.OTHERS or name.removesuffix("s") in gazetteer.OTHERS or "-" in last:
        return "other"
    if "title" in context or (first in gazetteer.FIRST_NAMES and len(words) <= 3):
        return "person"
    if len(words) > 1 and (last in gazetteer.PLACE_HEADS or first in gazetteer.PLACE_HEADS):
        return "place"
    if len(words) > 1 and first in gazetteer.ORGANISATION_HEADS and words[1] == "of":
        return "organisation"
    return None


class _Bayes:
    """Multinomial naive Bayes over features, learned from labelled bags of them."""

    def __init__(self, labelled: Iterable[tuple[str, Counter[str]]]) -> None:
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in TYPES}
        names: Counter[str] = Counter(dict.fromkeys(TYPES, 1))
        for kind, features in labelled:
            names[kind] += 1
            counts[kind].update(features.keys())  # once a name, so that a frequent one does not drown the others
        totals = {kind: counts[kind].total() for kind in TYPES}
        known = len(set().union(*counts.values()))
        self.prior = {kind: math.log(names[kind] / names.total()) for kind in TYPES}
        self.odds: dict[str, tuple[float, ...]] = {}
        for feature in set().union(*counts.values()):
            self.odds[feature] = tuple(
                math.log((counts[kind][feature] + SMOOTHING) / (totals[kind] + SMOOTHING * known)) for kind in TYPES
            )

    def judge(self, features: Iterable[str]) -> tuple[str, float]:
        """The likeliest type and its posterior."""
        logs = [self.prior[kind] for kind in TYPES]
        for feature in features:
            for index, value in enumerate(self.odds.get(feature, ())):
                logs[index] += value
        best = max(range(len(logs)), key=logs.__getitem__)
        return TYPES[best], 1 / sum(math.exp(value - logs[best]) for value in logs)


def _typed(features: dict[tuple[str, ...], Counter[str]]) -> tuple[dict[tuple[str, ...], str], _Bayes]:
    """A type for each name: the seeds', then what the model of these says, and again with its sure answers."""
    seeds = {words: kind for words, counted in features.items() if (kind := _seed(words, counted)) is not None}
    labelled = dict(seeds)
    for _ in range(ROUNDS):
        bayes = _Bayes((kind, features[words]) for words, kind in labelled.items())
        judged = {words: bayes.judge(counted) for words, counted in features.items() if words not in seeds}
        labelled = seeds | {words: kind for words, (kind, sure) in judged.items() if sure >= SURE}
    return seeds | {words: kind for words, (kind, _) in judged.items()}, bayes
