"""The compiled pass counts what a plain reading of the definitions counts."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
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
        "日本iron",
        "ภาษาไทย",
        "한국어",
        "clause;",
        "é\u0301",
    ]
)
TEXTS = st.lists(
    st.tuples(WORDS, st.sampled_from([" ", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "\t", "\u2003"])), max_size=120
).map(lambda pairs: "".join(word + space for word, space in pairs))


ALONE = regex.compile(r"[\p{Han}\p{Thai}--\p{M}]", regex.V1)  # of the scripts that stand in WORDS


def units(text: str) -> list[str]:
    """Words; signs of scripts without spaces, each with the marks and punctuation behind it."""
    parts: list[str] = []
    for word in text.split():
        parts.append("")
        for character in word:
            sign = ALONE.match(character) is not None
            text_before = any(c.isalnum() for c in parts[-1])
            after_sign = any(ALONE.match(c) for c in parts[-1]) and character.isalnum()
            if parts[-1] and ((sign and text_before) or (after_sign and not sign)):
                parts.append("")
            parts[-1] += character
    return parts


def width(word: str) -> int:
    bare = [c for c in word if unicodedata.category(c)[0] != "M"]
    return len(bare) + sum(regex.match(r"[\p{Han}\p{Hangul}]", c) is not None for c in bare)


def ends(word: str) -> bool:
    inside = len(word) > 1 and word[-1] in ")]）］】" and word[-2] in TERMINAL
    return inside or word[-1] in TERMINAL + ";" or word.endswith(("...", "…"))


SPEAKS = r"[[\p{L}\p{M}\p{N}]--[\x00-\u02af]--[[\p{Han}\p{Thai}]--\p{M}]]"
PARTED = regex.compile(rf"(?<={SPEAKS})[.!?](?={SPEAKS})", regex.V1)


def plainly(text: str, wrapped: bool) -> dict[str, object]:
    """The definitions, read slowly."""
    words = units(text)
    blocks = [
        block
        for block in "\n".join("" if not line.strip() else line for line in text.split("\n")).split("\n\n")
        if block.split()
    ]
    paragraphs = [joined(block) for block in blocks]
    lines = paragraphs if wrapped else [joined(line) for line in text.split("\n") if line.split()]
    signs = [word for word in words if ALONE.match(word)]
    with_text = [word for word in words if any(c.isalpha() or c.isnumeric() for c in word)]

    spaced = [word for word in with_text if not ALONE.match(word)]
    worth = {"日": 8, "本": 8}

    def again(blocks: list[str]) -> tuple[int, int]:
        repeated = [block for number, block in enumerate(blocks) if block in blocks[:number]]
        return len(repeated), sum(map(len, repeated))

    def ellipsis(line: str) -> bool:
        return line.endswith(("...", "…")) and units(line)[-1] != ".."

    plain = {"".join(c for c in word.lower() if c.isalpha() or c.isnumeric()) for word in words}
    return {
        "characters": len(text),
        "words": len(words),
        "text_words": len(with_text),
        "spaced_words": len(spaced),
        "spaced_characters": sum(map(width, spaced)),
        "worth": (12 * (len(words) - len(signs)) + sum(worth.get(word[0], 4) for word in signs)) / 12,
        "unmarked_words": sum(word[0] in "ภาษาไทย" for word in signs),
        "letter_words": sum(any(map(str.isalpha, word)) for word in words),
        "longest_word": max(map(len, words), default=0),
        "stop_words": len(plain & set(STOP_WORDS)),
        "hash_signs": text.count("#"),
        "braces": text.count("{"),
        "line_ends": text.count("\n"),
        "sentences": sum(map(ends, words)) + len(PARTED.findall(text)),
        "lines": len(lines),
        "line_characters": sum(map(len, lines)),
        "ellipsis_lines": sum(map(ellipsis, lines)),
        "bullet_lines": sum(line[0] in BULLETS or line.split(" ")[0] in "-*–" for line in lines),
        "terminal_lines": sum((ends(line) or line[-1] == ",") and not ellipsis(line) for line in lines),
        "short_lines": sum(width(line) <= 30 for line in lines),
        "repeated_lines": again(lines)[0],
        "repeated_line_characters": again(lines)[1],
        "paragraphs": len(paragraphs),
        "repeated_paragraphs": again(paragraphs)[0],
        "repeated_paragraph_characters": again(paragraphs)[1],
    }


def joined(block: str) -> str:
    return " ".join(block.split())


def top(words: list[str], n: int, blanks: int) -> int:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    sizes = ((sum(map(len, gram)) + blanks - 1) * count for gram, count in counts.items() if count > 1)
    return max(sizes, default=0)


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
@example("the the the the the the ภาษาไทย ภาษาไทย ", False)  # n words are half a unit more than a whole number
@settings(max_examples=300, deadline=None)
def test_counts_equal_the_plain_definitions(text: str, wrapped: bool) -> None:
    counted = scan(text, wrapped)._asdict()
    assert counted.pop("ellipses") >= text.count("…")
    expected = plainly(text, wrapped)
    words, scale = units(text), len(units(text)) / expected["worth"] if expected["worth"] else 1.0
    runs = {n: int(n * scale + 0.5) for n in range(2, 11)}  # so many units are as much as n words
    tops = [top(words, runs[n], n) / max(1, len(text)) for n in (2, 3, 4)]
    assert counted.pop("top_ngrams") == pytest.approx(tops)
    repeated = [inside(words, runs[n]) / max(1, len(text)) for n in range(5, 11)]
    assert counted.pop("repeated_ngrams") == pytest.approx(repeated)
    assert counted.pop("worth") == pytest.approx(expected.pop("worth"))
    assert counted == expected


@given(st.text(st.characters(exclude_categories=[])))
@settings(deadline=None)
def test_any_text_is_counted(text: str) -> None:
    assert scan(text).characters == len(text)


def test_words_are_told_apart_and_case_is_not() -> None:
    scanned, hashes = scan_words("Iron, iron! (IRON) steel --- 42")
    assert (scanned.words, scanned.text_words, len(hashes)) == (6, 5, 5)
    assert len(np.unique(hashes)) == 3
    assert Scan._fields[0] == "characters"


def test_a_million_words_are_scanned_in_time() -> None:
    text = " ".join(f"w{number % 9973}" for number in range(1_000_000))
    assert scan(text).words == 1_000_000
