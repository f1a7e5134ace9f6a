"""Say by name why a text is not worth training on: every filter a recipe asks for, in the order of their cost."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmforge.corpus.clean.classify import Classifier, classifier, load
from lmforge.corpus.clean.forms import SHORT_OF, Form, form_of
from lmforge.corpus.clean.language import language_of
from lmforge.corpus.clean.perplexity import Unlikeness, unlikeness
from lmforge.corpus.clean.private import NEVER_MASKED, mask_private
from lmforge.corpus.clean.quality import (
    PROSE,
    WRAPPED,
    broken_rules,
    has_lorem_ipsum,
    has_toxic_words,
    toxic_words,
    without_boilerplate,
)
from lmforge.corpus.clean.scan import scan
from lmforge.corpus.normalise import clean, layout
from lmforge.corpus.scripts import characters, pieces
from lmforge.corpus.sources.decode import unreadable
from lmforge.corpus.sources.document import Document
from lmforge.corpus.sources.examples import examples_hash
from lmforge.errors import InputError
from lmforge.recipe import Corpus

_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
_NOT_TEXT = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")  # replacement characters and private use
_WORD, _LATIN_WORD = re.compile(r"[^\W\d_]+"), re.compile("[A-Za-z]+")
_LETTERS, _SPACES = string.ascii_letters.encode(), string.whitespace.encode()

SIGNS = 16  # of a script without spaces that are about as much as `NGRAM` words
NGRAM = 10  # words; Rae et al. 2021 (Gopher) uses 5 to 10
SHORTEST_JUDGED = 20  # lines or words below which repetition says nothing
LEAST_LETTERS = 0.2  # share of the visible characters
MOST_REFRAIN = 0.8  # of verse: the share of its lines or words that may repeat earlier ones
MOST_UNREADABLE = 0.05  # share of all characters


class Trained(NamedTuple):
    """The filters of a corpus that are learned from examples; None for those that its settings do not ask for."""

    perplexity: Unlikeness | None
    quality: Classifier | None

    @classmethod
    def of(cls, settings: Corpus) -> Trained:
        """Trained here, or kept from before.

        Raises:
            InputError: examples cannot be read or are too few.
        """
        unlike = unlikeness(settings.perplexity) if settings.perplexity else None
        return cls(unlike, classifier(settings.quality) if settings.quality else None)

    def save(self, folder: Path) -> None:
        """Write them, for the tasks of all processes to load."""
        for name, model in self._asdict().items():
            if model is not None:
                model.save(folder / f"filter-{name}.npz")

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """Read what `save` wrote."""
        perplexity, quality = (folder / f"filter-{name}.npz" for name in cls._fields)
        return cls(
            Unlikeness.load(perplexity) if perplexity.exists() else None, load(quality) if quality.exists() else None
        )


def prepare(
    document: Document, settings: Corpus, notices: Counter[str] | None = None, trained: Trained | None = None
) -> tuple[Document, str | None]:
    """Everything that concerns one document alone: the document with its text cleaned, and the reason to leave it out,
    or None.

        repair ─▶ boilerplate lines (web) ─▶ personal data masked ─▶ length, letters, repetition ─▶ language ─▶ word
        list
               ─▶ quality rules (prose) ─▶ perplexity ─▶ classifier

    `notices` counts what was changed, by name. A pure function of the document and the settings: the same in every
    process. `trained` are the filters that the settings ask for; without it they are trained at the first document.
    """
    if "loss_spans" in document["meta"]:  # which point into the text as it is: sentence pairs, tasks, conversations
        return document, None if document["text"].strip() else "too_short"
    genre, text = document["genre"], clean(document["text"])
    if genre == "web" and "boilerplate" in settings.rules:
        text = layout(without_boilerplate(text, "punctuation" in settings.rules, notices))
    if settings.mask_private and genre not in NEVER_MASKED:
        text = _masked(text, genre, settings, notices)
    document = {**document, "text": text}
    if settings.languages and genre != "code" and len(text) >= settings.min_chars:
        document["meta"] = {**document["meta"], "language": language_of(text)}
    return document, _why_left_out(document, settings, trained)


def _masked(text: str, genre: str, settings: Corpus, notices: Counter[str] | None) -> str:
    """Personal data masked, but in a text of unknown genre that is a program."""
    counts: Counter[str] = Counter()
    masked = mask_private(text, settings.mask_private, counts)
    if counts and genre == "unknown" and form_of(text) in NEVER_MASKED:
        return text
    if notices is not None:
        notices.update(counts)
    return masked


def _why_left_out(document: Document, settings: Corpus, trained: Trained | None) -> str | None:
    genre, text = document["genre"], document["text"]
    prose = genre in PROSE and bool(settings.rules)
    form = _Form(text, "messages" in document["meta"])
    reason = _unfit(text, settings, form)
    if reason is None and not (prose and "repetition" in settings.rules):
        reason = _repetitive(text, settings, form)
    if reason is None and settings.languages and document["meta"].get("language") not in (None, *settings.languages):
        reason = "other_language"
    if reason is None and settings.toxic_words and has_toxic_words(text, *_listed(settings.toxic_words)):
        reason = "toxic_words"
    if reason is None and prose:
        reason = _broken_rule(text, genre, settings, document["meta"].get("language"), form)
    if reason is None and (settings.perplexity or settings.quality):
        unlike, judge = trained or Trained.of(settings)
        if unlike and unlike.is_unlike(text):
            reason = "perplexity"
        elif judge and settings.quality and judge.probability(text) < settings.quality.threshold:
            reason = "quality_classifier"
    return reason


class _Form:
    """The form of a text, looked at when it is first asked for."""

    def __init__(self, text: str, conversation: bool = False) -> None:
        self._text = text
        self._form: Form | None = "dialogue" if conversation else None

    def __call__(self) -> Form:
        if self._form is None:
            self._form = form_of(self._text)
        return self._form


def _broken_rule(text: str, genre: str, settings: Corpus, language: Any, form: _Form) -> str | None:
    if (
        genre == "web"
        and "c4" in settings.rules
        and "c4_lorem_ipsum" not in settings.rules_off
        and has_lorem_ipsum(text)
    ):
        return "c4_lorem_ipsum"
    scanned = scan(text, wrapped=genre in WRAPPED)
    broken = broken_rules(scanned, genre, settings.rules, lambda: _is_english(text, language))
    reason = next((reason for reason in broken if reason not in settings.rules_off), None)
    if reason is None or form() == "prose":
        return reason
    return _repetitive(text, settings, form) if "repetition" in settings.rules else None


def _is_english(text: str, language: Any) -> bool:
    """Whether a text is in English; what is mostly in other letters is not, whatever a model of languages says."""
    return _mostly_latin(text) and (language or language_of(text)) == "en"


def _mostly_latin(text: str) -> bool:
    return text.isascii() or 2 * sum(map(len, _LATIN_WORD.findall(text))) > sum(map(len, _WORD.findall(text)))


@functools.lru_cache(maxsize=4)
def _listed(path: Path) -> tuple[frozenset[str], dict[str, list[str]]]:
    try:
        return toxic_words(iter(path.read_text(encoding="utf-8").split("\n")))
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus.toxic_words {path}: not UTF-8 text ({error.reason}); convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def filters_report(settings: Corpus) -> dict[str, Any]:
    """What the trained filters of these settings are and how well they do, for statistics.json; {} where there are
    none."""
    report: dict[str, Any] = {}
    if settings.perplexity:
        model = unlikeness(settings.perplexity)
        report["perplexity"] = {
            "most_bits_per_byte": model.bound,
            "trained_bytes": model.trained_bytes,
            "held_out_documents": model.held_out,
        }
    if settings.quality:
        report["quality_classifier"] = classifier(settings.quality).report
    return report


def filters_fingerprint(settings: Corpus) -> dict[str, str]:
    """The files beside the sources that decide what is left out, each with a hash that changes when they do."""
    paths = {"corpus.toxic_words": settings.toxic_words}
    if settings.perplexity:
        paths["corpus.perplexity.reference"] = settings.perplexity.reference
    if settings.quality:
        paths |= {"corpus.quality.good": settings.quality.good, "corpus.quality.bad": settings.quality.bad}
    return {name: examples_hash(path) for name, path in paths.items() if path is not None}


def why_dropped(text: str, settings: Corpus) -> str | None:
    """The reason to leave a cleaned text out, or None to keep it.

    `too_short`, `too_long`: characters outside [min_chars, max_chars], those of Chinese, Japanese and Korean counted
    double; verse, tables and other forms than prose may be a quarter as long. `mostly_not_text`: letters are under a
    fifth of the visible characters, unless the form of the text is one of numbers or signs, or unreadable characters
    over a twentieth of all. `duplicate_lines`, `duplicate_ngrams`: as the functions below say.
    """
    form = _Form(text)
    return _unfit(text, settings, form) or _repetitive(text, settings, form)


def _unfit(text: str, settings: Corpus, form: _Form) -> str | None:
    off = settings.rules_off
    if len(text) < settings.min_chars and "too_short" not in off:
        size = characters(text)
        if size < settings.min_chars and (size < settings.min_chars / SHORT_OF or form() == "prose"):
            return "too_short"
    if len(text) > settings.max_chars and "too_long" not in off:
        return "too_long"
    if "mostly_not_text" not in off and ((_few_letters(text) and form() == "prose") or _unreadable(text)):
        return "mostly_not_text"
    return None


def _repetitive(text: str, settings: Corpus, form: _Form) -> str | None:
    for reason, share, most in (
        ("duplicate_lines", duplicate_line_share, settings.max_duplicate_lines),
        ("duplicate_ngrams", duplicate_ngram_share, settings.max_duplicate_ngrams),
    ):
        value = 0.0 if reason in settings.rules_off else share(text)
        if value > most and (value > MOST_REFRAIN or form() != "verse"):
            return reason
    return None


def _few_letters(text: str) -> bool:
    if text.isascii():  # translate() is 50 times as fast as asking each character
        data = text.encode()
        return len(data.translate(None, _LETTERS + _SPACES)) > (1 - LEAST_LETTERS) * len(data.translate(None, _SPACES))
    data, others = text.encode("ascii", "ignore"), "".join(_BEYOND_ASCII.findall(text))
    visible = len(data.translate(None, _SPACES)) + len(others) - sum(map(str.isspace, others))
    letters = len(data) - len(data.translate(None, _LETTERS)) + sum(map(str.isalpha, others))
    return letters < LEAST_LETTERS * visible


def _unreadable(text: str) -> bool:
    return not text.isascii() and len(_NOT_TEXT.findall(text)) > MOST_UNREADABLE * len(text)


def duplicate_line_share(text: str) -> float:
    """Share of the non-blank lines that repeat an earlier line (indentation aside); 0 below 20 lines. Rae et al.
    2021."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= SHORTEST_JUDGED else 0.0


def duplicate_ngram_share(text: str) -> float:
    """Share of the words' characters that lie in a run of 10 words seen earlier in the text; 0 below 20 words.

    Each character counts once (Rae et al. 2021). Words are compared by their 64-bit hashes: a false match within one
    text has a chance near 1e-9 even at a million words.
    """
    words, between = pieces(text)
    ngram = NGRAM
    if not between:  # a script without spaces
        words, ngram = list("".join(text.split())), SIGNS
    if len(words) < SHORTEST_JUDGED:
        return 0.0
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    runs = np.zeros(len(words) - ngram + 1, dtype=np.uint64)
    for offset in range(ngram):  # polynomial hash modulo 2^64, the multiplier odd
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + runs.size]
    ordered = np.sort(runs)
    if not (ordered[1:] == ordered[:-1]).any():  # the common case, at a tenth of the cost of the next line
        return 0.0
    order = np.argsort(runs, kind="stable")  # stable: among equal runs the first in the text comes first
    repeats = order[1:][runs[order[1:]] == runs[order[:-1]]]
    edges = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(edges, repeats, 1)
    np.add.at(edges, repeats + ngram, -1)
    inside = np.cumsum(edges[:-1]) > 0
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    return float(lengths[inside].sum() / lengths.sum())
