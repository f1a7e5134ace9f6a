"""Rules of published corpora for telling prose from what else lies on the web. Each rule is a named reason.

    boilerplate  lines that a site puts on its pages, removed (web only)           Raffel et al. 2020 (C4), section 2.2
    gopher       words, symbols, bullets, stop words                               Rae et al. 2021 (Gopher), section
    A.1.1
    repetition   repeated lines, paragraphs and n-grams                            Rae et al. 2021, table A1
    c4           lorem ipsum, curly brackets, too few sentences                    Raffel et al. 2020, section 2.2
    fineweb      lines without punctuation, short lines, repeated lines, lists     Penedo et al. 2024 (FineWeb), section
    3.6

They were made for web pages, where a line is a paragraph. In books, news, encyclopedias and stories, whose lines may be
broken at a width, the rules see what stands between blank lines as a line. Code, technical text with its markup and
text of unknown genre are never judged by them; nor is a text that is no prose (see forms.py), whatever its genre.
Counts of words and lengths are scaled by script (see corpus/scripts.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import regex

from lmforge.corpus import scripts
from lmforge.corpus.clean.scan import TERMINAL, Scan
from lmforge.recipe import RuleFamily

PROSE = frozenset(("web", "news", "encyclopedia", "books", "stories"))
WRAPPED = PROSE - {"web"}  # genres whose lines may be broken at a width
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LONGEST_WORD = 1000  # characters; C4 drops lines with a longer one
FEWEST_WORDS = 3  # of a line that C4 keeps
LONGEST_UNMARKED = 40  # words of running text within which a sentence ends, though its line may not end with it
LONGEST_NOTICE = 300  # characters of a line that tells visitors of scripts and cookies; longer ones write about them
FEW_LINES = 2  # that end or begin in some way, of which a share says nothing
_PASSES = 10
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1}}}")
# marks of an encyclopedia, behind a sentence or a part of one (its closing quote included) and before a blank or the
# end; the number of an element, as in row[0] or f(x)[1], stands behind a name or a bracket, and stays
# (each looks back from the bracket, which is what is searched for)
_CITATION = re.compile(
    r"""\[(?:(?:(?<=[^\W\d_][.!?…。！？]\[)|(?<=[^\W\d_]{3}[,;]\[)|(?<=[^\W\d_][，；、]\[)"""
    r"""|(?<=[.!?…。！？]["”’»」)]\[))"""
    r"""\d{1,3}\](?:\[\d{1,3}\])*(?=\s|$|[^\x00-\x7f])"""
    r"""|(?<=[\w.,;!?…。，！？"”’»)]\[)(?:citation|clarification|verification) needed\]|(?<=\w\[)edit\]$)"""
)
_WORDS = regex.compile(r"[\w\p{M}]+")
_PHRASES = ("javascript", *POLICY)


class Rule(NamedTuple):
    """Documents for which `breaks` holds are left out under `reason`. `genres`: those it judges; `elsewhere`: what must
    hold too if the text is in another language than English, for which the bounds were made."""

    reason: str
    family: RuleFamily
    breaks: Callable[[Scan], bool]
    genres: frozenset[str] = PROSE
    elsewhere: Callable[[Scan], bool] | None = None


_WEB = frozenset(("web",))
_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_REPEATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def _top(number: int, most: float) -> Callable[[Scan], bool]:
    return lambda scan: scan.top_ngrams[number - 2] > most


def _inside(number: int, most: float) -> Callable[[Scan], bool]:
    return lambda scan: scan.repeated_ngrams[number - 5] > most


def _word_length(scan: Scan) -> float:
    """Characters of a word between spaces; 5 for a text that is mostly in a script without spaces."""
    return scan.spaced_characters / scan.spaced_words if scan.spaced_words > 0.5 * scan.worth else 5.0


def _few_sentences(scan: Scan) -> bool:
    """Fewer than five, unless they are long and stand in paragraphs."""
    parts = max(scan.sentences, scan.lines if scan.lines >= 4 else 0)
    paragraphs = parts >= 2 and scan.worth >= max(80, 12 * scan.lines) and scan.worth <= 100 * parts
    return scan.sentences < 5 and not paragraphs


def _marks_sentences(scan: Scan) -> bool:
    """Whether its script ends sentences with a mark: Thai and Lao do not."""
    return scan.unmarked_words < 0.5 * scan.words


RULES = (
    Rule("gopher_too_few_words", "gopher", lambda s: s.worth < 50 and s.text_words < 50 * s.words / max(1, s.worth)),
    Rule("gopher_too_many_words", "gopher", lambda s: s.worth > 100_000, frozenset(("web",))),  # novels have more
    Rule("gopher_short_words", "gopher", lambda s: _word_length(s) < 3, elsewhere=lambda s: _word_length(s) < 2),
    Rule("gopher_long_words", "gopher", lambda s: _word_length(s) > 10, elsewhere=lambda s: _word_length(s) > 16),
    Rule("gopher_hash_signs", "gopher", lambda s: s.hash_signs > 0.1 * s.worth),
    Rule("gopher_ellipses", "gopher", lambda s: s.ellipses > 0.1 * s.worth),
    Rule("gopher_bullet_lines", "gopher", lambda s: s.bullet_lines > max(0.9 * s.lines, FEW_LINES)),
    Rule(
        "gopher_ellipsis_lines",
        "gopher",
        lambda s: s.ellipsis_lines > max(0.3 * s.lines, FEW_LINES),
        elsewhere=lambda s: s.ellipsis_lines > 0.6 * s.lines,  # in many languages "..." is a mark like any other
    ),
    Rule("gopher_few_letters", "gopher", lambda s: s.letter_words < 0.8 * s.words),
    Rule("repeated_paragraphs", "repetition", lambda s: s.repeated_paragraphs > 0.3 * s.paragraphs),
    Rule("repeated_paragraph_characters", "repetition", lambda s: s.repeated_paragraph_characters > 0.2 * s.characters),
    Rule("repeated_lines", "repetition", lambda s: s.repeated_lines > 0.3 * s.lines),
    Rule("repeated_line_characters", "repetition", lambda s: s.repeated_line_characters > 0.2 * s.characters),
    *(Rule(f"top_{number}gram", "repetition", _top(number, most)) for number, most in _TOP),
    *(Rule(f"repeated_{number}grams", "repetition", _inside(number, most)) for number, most in _REPEATED),
    Rule("c4_curly_bracket", "c4", lambda s: s.braces > 0, _WEB, lambda s: s.braces > 0.01 * s.worth),
    Rule(
        "c4_too_few_sentences",
        "c4",
        lambda s: _few_sentences(s) and _marks_sentences(s),
        _WEB,
        lambda s: s.sentences < 3,  # many languages say in three sentences, and fewer words, what English says in five
    ),
    Rule(
        "fineweb_unpunctuated_lines",
        "fineweb",
        lambda s: s.terminal_lines + s.ellipsis_lines <= 0.12 * s.lines and _marks_sentences(s),
        _WEB,
        lambda s: s.sentences <= s.worth / LONGEST_UNMARKED,
    ),
    Rule(
        "fineweb_short_lines",
        "fineweb",
        lambda s: s.short_lines >= 0.67 * s.lines,
        _WEB,
        # a menu's lines end no sentence; where people write a sentence a line, lines are short
        lambda s: s.terminal_lines + s.ellipsis_lines < 0.5 * s.lines,
    ),
    Rule(
        "fineweb_repeated_line_characters",
        "fineweb",
        lambda s: s.repeated_line_characters >= 0.1 * s.line_characters,
        _WEB,
    ),
    Rule("fineweb_list", "fineweb", lambda s: s.line_ends > 0.3 * s.worth, _WEB),
)
FEWEST_STOP_WORDS = 2  # distinct English ones; asked of English text only


def broken_rules(
    scan: Scan, genre: str, families: tuple[RuleFamily, ...], is_english: Callable[[], bool] = lambda: True
) -> Iterator[str]:
    """The reasons of the rules that a text of this genre breaks, in order. `is_english` is asked only where a rule
    depends on it."""
    for rule in RULES:
        broken = rule.family in families and genre in rule.genres and rule.breaks(scan)
        if broken and (rule.elsewhere is None or rule.elsewhere(scan) or is_english()):
            yield rule.reason
    if "gopher" in families and scan.stop_words < FEWEST_STOP_WORDS and is_english():
        yield "gopher_stop_words"


def has_lorem_ipsum(text: str) -> bool:
    """Whether the filler text of unfinished pages is in it (C4)."""
    return "lorem ipsum" in text or "lorem ipsum" in text.lower()


def without_boilerplate(text: str, strict: bool, notices: Counter[str] | None = None) -> str:
    """`text` without the lines that C4 removes: short ones that speak of JavaScript, cookies or terms of use, and
    those with a giant word.

    `strict` also removes lines that end in no terminal mark or have fewer than 3 words, which takes headings and lists
    with it (FineWeb found that to cost 30% of the data and left it out). Citation marks such as [1] behind a sentence
    go. The lines that stay are otherwise unchanged.
    """
    marked = "[" in text
    named = _names_boilerplate(_without_citations(text) if marked else text)
    if not (strict or marked or named or _LONG_WORD.search(text)):
        return text
    kept, removed = [], 0
    for line in text.split("\n"):
        bare = _without_citations(line) if marked and "[" in line else line
        if bare.strip() and _is_boilerplate(bare, named, strict):
            removed += 1
        else:
            kept.append(bare if bare.strip() or not line.strip() else "")
    if notices is not None and removed:
        notices["boilerplate lines removed"] += removed
    return "\n".join(kept)


def _without_citations(line: str) -> str:
    for _ in range(_PASSES):  # a mark inside another leaves a third
        before, line = line, _CITATION.sub("", line)
        if line == before:
            break
    return line


def _names_boilerplate(text: str) -> bool:
    text = text.lower()
    return any(phrase in text for phrase in _PHRASES)


def _is_boilerplate(line: str, named: bool, strict: bool) -> bool:
    if named and len(line) <= LONGEST_NOTICE and _names_boilerplate(line):
        return True
    if len(line) > LONGEST_WORD and any(len(word) > LONGEST_WORD for word in scripts.words(line)):
        return True
    if not strict:
        return False
    stripped = line.rstrip()
    return stripped[-1] not in TERMINAL or stripped.endswith("...") or len(scripts.words(line)) < FEWEST_WORDS


def toxic_words(lines: Iterator[str]) -> tuple[frozenset[str], dict[str, list[str]]]:
    """(single words, phrases by their first word) of a list: one a line, in any case; blank lines and `#` remarks are
    left out."""
    words, phrases = set[str](), dict[str, list[str]]()
    for line in lines:
        entry = " ".join(_listed_words(line.partition("#")[0]))
        if " " in entry:
            phrases.setdefault(entry.partition(" ")[0], []).append(entry)
        elif entry:
            words.add(entry)
    return frozenset(words), phrases


def _listed_words(text: str) -> list[str]:
    """Letters and digits with their marks; in a script without spaces each sign, so that a word of it is a phrase."""
    return [match[0] for match in _WORDS.finditer(" ".join(scripts.words(text.lower())))]


def has_toxic_words(text: str, words: frozenset[str], phrases: dict[str, list[str]]) -> bool:
    """Whether a word or phrase of the list is in the text as such, never as a part of a longer word (C4)."""
    present = _listed_words(text)
    if not words.isdisjoint(present):
        return True
    possible = phrases.keys() & set(present)
    joined = f" {' '.join(present)} " if possible else ""
    return any(f" {phrase} " in joined for first in possible for phrase in phrases[first])
