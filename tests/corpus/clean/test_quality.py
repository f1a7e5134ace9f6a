"""Every rule has a text that breaks it alone, and good prose of every genre breaks none."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean.quality import (
    PROSE,
    RULES,
    broken_rules,
    has_lorem_ipsum,
    has_toxic_words,
    toxic_words,
    without_boilerplate,
)
from lmforge.corpus.clean.scan import scan
from lmforge.recipe import Corpus

FAMILIES = Corpus().rules
SENTENCES = [
    "The old forge stood at the end of the village, where the road turned down to the river and the mill.",
    "Every morning the smith lit the fire with dry birch, and by noon the iron was bright enough to bend.",
    "Nobody remembered who had built the place, but the stones over the door were worn smooth with age.",
    "In winter children came to warm their hands, and they would stay until someone called them home.",
    "He did not talk much, yet he knew the name of each horse that he had shod in forty years of work.",
    "When the war came, the army bought his nails by the barrel and paid with letters instead of coins.",
]
GOOD = "\n".join(SENTENCES)


def words(count: int) -> list[str]:
    return [
        f"{'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10 % 10]}{'uvwxyz'[number // 100 % 6]}ord{number}"
        for number in range(count)
    ]


LIST = "\n".join(f"{first} {second}." for first, second in zip(words(60), reversed(words(60)), strict=True))
BREAKING = {
    "gopher_too_few_words": SENTENCES[0] + " " + "Yes. " * 3 + "No. Why? Go.",
    "gopher_too_many_words": " ".join(f"{word}." for word in words(600) for _ in range(170)),
    "gopher_short_words": "I a. " + " ".join(["ab", "to", "we.", "in", "on", "at.", "it", "is"] * 12),
    "gopher_long_words": " ".join(f"{word}incomprehensibilities." for word in words(80)),
    "gopher_hash_signs": GOOD + " #" * 30,
    "gopher_ellipses": GOOD.replace(",", "...").replace(" the ", " the... "),
    "gopher_bullet_lines": "\n".join(f"- {sentence}" for sentence in SENTENCES),
    "gopher_ellipsis_lines": GOOD.replace(".\n", "...\n"),
    "gopher_few_letters": GOOD + " 12" * 40,
    "repeated_paragraphs": "\n\n".join([*SENTENCES[:5], "So.", "So.", "So.", "So."]),
    "repeated_paragraph_characters": "\n\n".join([*SENTENCES[:5], SENTENCES[0], SENTENCES[1]]),
    "repeated_lines": "\n".join([*SENTENCES, "So.", "So.", "So.", "So.", "So."]),
    "repeated_line_characters": "\n".join([*SENTENCES[:5], SENTENCES[0], SENTENCES[1]]),
    "top_2gram": " ".join(f"iron forge {word}." for word in words(60)),
    "top_3gram": " ".join(f"by a if {word}s {word} x{word}." for word in words(60)),
    "top_4gram": " ".join(f"by a if so {word}s {word} {word}x {word}q." for word in words(60)),
    "c4_curly_bracket": GOOD + "\nfunction() { return; }.",
    "c4_too_few_sentences": " ".join(SENTENCES).replace(".", ",") + ".",
    "fineweb_unpunctuated_lines": "He left. It was. So. But! Yet? " + GOOD.replace(".\n", "\n").rstrip("."),
    "fineweb_short_lines": GOOD[:300] + ".\n" + "\n".join(f"{word} is it." for word in words(20)),
    "fineweb_repeated_line_characters": "\n".join([*SENTENCES, SENTENCES[0]]),
    "fineweb_list": LIST.replace("\n", ", and the rest of what they were.\n\n\n"),
}


RU = "Старик {} увидел мост и долго думал о том, что было в его жизни{}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "\n".join(RU.format(n, "…" if n % 2 else ".") for n in range(12)), id="dots as a mark like any other"
        ),
        pytest.param("\n".join(f"Он видел мост и реку {n}." for n in range(30)), id="a short sentence a line"),
        pytest.param(" ".join(RU.format(n, ".") for n in range(4)), id="four sentences"),
        pytest.param(RU.format(1, ".Потом") * 9, id="no blank behind a full stop"),
        pytest.param("\n".join([*(RU.format(n, ".") for n in range(30)), "Так {x} пишут множество."]), id="a set"),
        pytest.param("- " + " ".join(RU.format(n, ".") for n in range(9)), id="one line that begins with a dash"),
    ],
)
def test_good_text_of_another_language_breaks_none(text: str) -> None:
    families = tuple({rule.family for rule in RULES} - {"repetition"})
    assert [*broken_rules(scan(text), "web", families, lambda: False)] == []


def test_a_paragraph_about_scripts_is_no_notice() -> None:
    about = "JavaScript engines compile what they run often, and cookies keep who is logged in. " * 6
    assert without_boilerplate(f"{GOOD}\n{about}\nPlease enable JavaScript.", False) == f"{GOOD}\n{about}"


def family_of(reason: str) -> str:
    return next(rule.family for rule in RULES if rule.reason == reason)


@pytest.mark.parametrize("reason", BREAKING)
def test_a_text_that_breaks_the_rule(reason: str) -> None:
    scanned = scan(BREAKING[reason])
    rule = next(rule for rule in RULES if rule.reason == reason)
    assert rule.breaks(scanned)
    assert not rule.breaks(scan(GOOD))
    assert reason in broken_rules(scanned, "web", (rule.family,))
    assert not any(rule.reason == reason for rule in RULES if "code" in rule.genres)


@pytest.mark.parametrize("length", range(5, 11))
def test_repeated_ngrams_of_each_length(length: int) -> None:
    pool = words(600)
    runs = [" ".join(pool[start : start + length]) for start in range(0, 100, length)]
    text = ". ".join(f"{run} {pool[300 + place]}" for place, run in enumerate(runs * 3))
    rule = next(rule for rule in RULES if rule.reason == f"repeated_{length}grams")
    assert rule.breaks(scan(text))
    longer = next((rule for rule in RULES if rule.reason == f"repeated_{length + 1}grams"), None)
    assert longer is None or not longer.breaks(scan(text))


def test_every_rule_is_tested_and_named_once() -> None:
    names = [rule.reason for rule in RULES]
    assert len(set(names)) == len(names)
    assert set(names) == {*BREAKING, *(f"repeated_{length}grams" for length in range(5, 11))}


@pytest.mark.parametrize("genre", sorted(PROSE))
def test_good_prose_breaks_none(genre: str) -> None:
    assert [*broken_rules(scan(GOOD), genre, FAMILIES)] == []


def test_books_broken_at_a_width_are_read_by_paragraph() -> None:
    wrapped = "\n\n".join(
        "\n".join(sentence[i : i + 30] for i in range(0, len(sentence), 30)) for sentence in SENTENCES
    )
    assert [*broken_rules(scan(wrapped, wrapped=True), "books", FAMILIES)] == []
    assert [*broken_rules(scan(wrapped), "web", FAMILIES)]


@pytest.mark.parametrize(
    ("line", "removed"),
    [
        ("Please enable JavaScript to view the comments.", True),
        ("This site uses cookies to serve you better.", True),
        ("Read our Terms of Use and our privacy policy.", True),
        ("x" * 1200, True),
        ("The cookies were baked by noon.", False),
        ("A Heading Without a Mark", False),
        ("", False),
        ("He wrote the script in Java.", False),
    ],
)
def test_boilerplate_lines_go_and_others_stay(line: str, removed: bool) -> None:
    notices: Counter[str] = Counter()
    assert without_boilerplate(f"Before.\n{line}\nAfter.", False, notices) == (
        "Before.\nAfter." if removed else f"Before.\n{line}\nAfter."
    )
    assert notices == ({"boilerplate lines removed": 1} if removed else {})


def test_strictly_only_sentences_stay() -> None:
    text = "A Heading\nA line that ends well.\nToo short.\nIt trails off...\n“Is it so?”\nhe said, and left"
    assert without_boilerplate(text, True) == "A line that ends well.\n“Is it so?”"


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("It melts at heat.[1] Then it cools.[2][3]", "It melts at heat. Then it cools."),
        ("In summer,[12] he said “it is so.”[4]", "In summer, he said “it is so.”"),
        ("History[edit]", "History"),
        ("It is old[citation needed] and good.[citation needed]", "It is old and good."),
        ("铁是一种金属。[1]它很硬，[2]但是很重。[3]", "铁是一种金属。它很硬，但是很重。"),
        ("Он жил давно.[5] Потом умер.[6]", "Он жил давно. Потом умер."),
    ],
)
def test_citations_go(line: str, rest: str) -> None:
    assert without_boilerplate(line, False) == rest


@pytest.mark.parametrize(
    "line",
    [
        "Take row[0] and row[1], then a[i] = b[2].", "x = f(x)[1] + data['key'][0]", "args[], buf[16], argv[1];",
        "The values are [1], [2] and [3].", "[1] 0.5 0.7", "[2]", "m[0][1] = v.x[2]", "print(a[0])[1]",
        "see [4] and [5]",
        "list[edit] = 1", "zip(a,[1])", "regex [0] or [0-9].[1]$", "Array.prototype[0] is read.", "C[] c = new C[3];",
    ],
)  # fmt: skip
def test_what_else_stands_in_brackets_stays(line: str) -> None:
    assert without_boilerplate(line, False) == line


@given(
    st.lists(
        st.sampled_from(["[", "]", "1", "edit", "javascript", "\n", "a b c.", "use cookies", " ", "java", "script"]),
        max_size=30,
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_boilerplate_removal_is_idempotent(pieces: list[str], strict: bool) -> None:
    once = without_boilerplate("".join(pieces), strict)
    assert without_boilerplate(once, strict) == once


def test_lorem_ipsum() -> None:
    assert has_lorem_ipsum("Then: Lorem Ipsum dolor")
    assert not has_lorem_ipsum(GOOD)


def test_toxic_words_are_whole_words_in_any_case() -> None:
    words, phrases = toxic_words(iter(["# remark", "", "Grue", "eaten by", "half-baked # why not", "eaten up"]))
    assert words == {"grue"}
    for text in ("A GRUE!", "it was eaten  by x", "half-baked", "Eaten-up"):
        assert has_toxic_words(text, words, phrases)
    for text in ("gruesome", "eaten", "eaten byte", "by eaten", "half a baked one", ""):
        assert not has_toxic_words(text, words, phrases)


def test_toxic_words_of_scripts_without_blanks_and_with_marks() -> None:
    words, phrases = toxic_words(iter(["杀人", "हत्या", "ฆ่า"]))
    for text in ("他说要杀人。", "वह हत्या करेगा", "เขาฆ่ากัน"):
        assert has_toxic_words(text, words, phrases)
    for text in ("人杀", "हत", "हत्यारा", "ฆา"):
        assert not has_toxic_words(text, words, phrases)


@pytest.mark.parametrize("sign", ["书", "ま", "ก", "ཀ"])
def test_a_long_paragraph_without_blanks_is_no_giant_word(sign: str) -> None:
    line = sign * 1500
    assert without_boilerplate(line, False) == line
    assert without_boilerplate(f"{sign * 20}。", True) == f"{sign * 20}。"
    assert without_boilerplate("x" * 1500, False) == ""


DATA = Path(os.environ.get("LMFORGE_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here (LMFORGE_DATA)")
@pytest.mark.parametrize(
    ("name", "genre", "least"),
    [
        ("books/classic_novels", "books", 0.95),
        ("encyclopedia/wikipedia_squad_train_articles", "encyclopedia", 0.95),
        ("stories/tinystories", "stories", 0.9),
        ("news/nyt_current_history_1914_15", "news", 0.9),
        ("web/gov_and_project_blogs", "web", 0.6),
    ],
)
def test_real_prose_passes(name: str, genre: str, least: float) -> None:
    with gzip.open(DATA / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(200), strict=False)]
    reasons = Counter(next(broken_rules(scan(text, wrapped=genre != "web"), genre, FAMILIES), None) for text in texts)
    assert reasons[None] >= least * len(texts), reasons
