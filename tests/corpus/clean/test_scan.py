"""The compiled pass counts what a plain reading of the definitions counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean.scan import BULLETS, STOP_WORDS, TERMINAL, Scan, scan, scan_words

WORDS = st.sampled_from(
    [
        "the",
        "The,",
        "of",
        "iron",
        "(steel)",
        "…",
        "wait...",
        "#tag",
        "-",
        "•",
        "{",
        "end.",
        "é",
        "x" * 40,
        "42",
        "and!”",
        "a-b",
        "日本。",
    ]
)
TEXTS = st.lists(
    st.tuples(WORDS, st.sampled_from([" ", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "\t", "\u2003"])), max_size=120
).map(lambda pairs: "".join(word + space for word, space in pairs))


def plainly(text: str, wrapped: bool) -> dict[str, object]:
    """The definitions, read slowly."""
    words = text.split()
    blocks = [
        block
        for block in "\n".join("" if not line.strip() else line for line in text.split("\n")).split("\n\n")
        if block.split()
    ]
    paragraphs = [tuple(block.split()) for block in blocks]
    lines = paragraphs if wrapped else [tuple(line.split()) for line in text.split("\n") if line.split()]
    with_text = [word for word in words if any(c.isalpha() or c.isnumeric() for c in word)]

    def again(units: list[tuple[str, ...]]) -> tuple[int, int]:
        found = [unit for number, unit in enumerate(units) if unit in units[:number]]
        return len(found), sum(len(" ".join(unit)) for unit in found)

    def ellipsis(line: tuple[str, ...]) -> bool:
        return line[-1].endswith(("...", "…"))

    plain = {"".join(c for c in word.lower() if c.isalpha() or c.isnumeric()) for word in words}
    return {
        "characters": len(text),
        "words": len(words),
        "text_words": len(with_text),
        "text_word_characters": sum(map(len, with_text)),
        "letter_words": sum(any(map(str.isalpha, word)) for word in words),
        "longest_word": max(map(len, words), default=0),
        "stop_words": len(plain & set(STOP_WORDS)),
        "hash_signs": text.count("#"),
        "braces": text.count("{"),
        "line_ends": text.count("\n"),
        "sentences": sum(word[-1] in TERMINAL or word.endswith(("...", "…")) for word in words),
        "lines": len(lines),
        "line_characters": sum(len(" ".join(line)) for line in lines),
        "ellipsis_lines": sum(map(ellipsis, lines)),
        "bullet_lines": sum(line[0][0] in BULLETS or line[0] in "-*–" for line in lines),
        "terminal_lines": sum(line[-1][-1] in TERMINAL and not ellipsis(line) for line in lines),
        "short_lines": sum(len(" ".join(line)) <= 30 for line in lines),
        "repeated_lines": again(lines)[0],
        "repeated_line_characters": again(lines)[1],
        "paragraphs": len(paragraphs),
        "repeated_paragraphs": again(paragraphs)[0],
        "repeated_paragraph_characters": again(paragraphs)[1],
        "top_ngrams": tuple(top(words, n) / max(1, len(text)) for n in (2, 3, 4)),
        "repeated_ngrams": tuple(inside(words, n) / max(1, len(text)) for n in range(5, 11)),
    }


def top(words: list[str], n: int) -> int:
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return max((len(gram) * count for gram, count in counts.items() if count > 1), default=0)


def inside(words: list[str], n: int) -> int:
    seen, characters, place = set[tuple[str, ...]](), 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            characters += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters


@given(TEXTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_counts_equal_the_plain_definitions(text: str, wrapped: bool) -> None:
    found = scan(text, wrapped)._asdict()
    assert found.pop("ellipses") >= text.count("…")
    expected = plainly(text, wrapped)
    for name in ("top_ngrams", "repeated_ngrams"):
        assert found.pop(name) == pytest.approx(expected.pop(name))
    assert found == expected


@given(st.text(st.characters(exclude_categories=[])))
@settings(deadline=None)
def test_any_text_is_counted(text: str) -> None:
    assert scan(text).characters == len(text)


def test_words_are_told_apart_and_case_is_not() -> None:
    found, hashes = scan_words("Iron, iron! (IRON) steel --- 42")
    assert (found.words, found.text_words, len(hashes)) == (6, 5, 5)
    assert len(np.unique(hashes)) == 3
    assert Scan._fields[0] == "characters"


def test_a_million_words_are_scanned_in_time() -> None:
    text = " ".join(f"w{number % 9973}" for number in range(1_000_000))
    assert scan(text).words == 1_000_000
