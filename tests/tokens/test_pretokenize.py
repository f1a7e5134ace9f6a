"""Cut as the library cuts: every code point, and any string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from lmforge.tokens.pretokenize import (
    SUPERWORDS,
    WORDS,
    WORDS_WITHOUT_MARKS,
    as_bytes,
    character_classes,
    classes_for,
    cut,
    joined,
    without_surrogates,
)

WAYS = {  # superwords, marks → the pattern
    (False, True): WORDS,
    (False, False): WORDS_WITHOUT_MARKS,
    (True, True): SUPERWORDS,
    (True, False): SUPERWORDS,
}
SPLITS = {way: pre_tokenizers.Split(Regex(pattern), "isolated") for way, pattern in WAYS.items()}
ODD = "ab1 2\n\r\t .,_()\u00a0\u2028é日٣½\x1c\x85\u3000🙂'\u0301\U00020000हि्ְ\ufe0f❤\U000e0100"
odd_texts = st.text(st.sampled_from(ODD), max_size=24) | st.text(max_size=24)


@pytest.mark.parametrize("way", WAYS)
@given(text=odd_texts)
@settings(max_examples=400)
def test_any_text_is_cut_as_the_library_cuts_it(text: str, way: tuple[bool, bool]) -> None:
    assert cut(text, *way) == [piece for piece, _ in SPLITS[way].pre_tokenize_str(text)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("start", [0, 0x2000, 0xFF00, 0x1D000, 0xE0000])
def test_every_character_is_cut_as_the_library_cuts_it(start: int, way: tuple[bool, bool]) -> None:
    for first in range(start, start + 0x2000, 64):
        characters = [chr(point) for point in range(first, first + 64) if not 0xD800 <= point < 0xE000]
        text = "".join(f"{c}a{c}1{c}{c} ({c}\n{c} {c}  " for c in characters)
        assert cut(text, *way) == [piece for piece, _ in SPLITS[way].pre_tokenize_str(text)], f"near U+{first:04X}"


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी भारत की राजभाषा है और देवनागरी में लिखी जाती है",
        "שָׁלוֹם עֲלֵיכֶם",
        "السَّلَامُ عَلَيْكُمْ",
        "ภาษาไทยเป็นภาษา",
        "தமிழ் மொழி",
        "u\u0308ber cafe\u0301",
    ],
)
def test_combining_marks_stay_with_their_letters(text: str) -> None:
    assert len(cut(text)) == len(text.split())
    assert len(cut(text, marks=False)) > len(text.split())


def test_a_text_of_low_characters_needs_only_the_small_table() -> None:
    assert len(classes_for(as_bytes("naïve – “quotes”".encode()), True)) == 0x3000
    assert classes_for(as_bytes("日本".encode()), True) is character_classes(True)
    assert (character_classes(True)[:0x3000] == classes_for(as_bytes(b""), True)).all()


def test_surrogates_become_what_utf_8_can_write() -> None:
    assert without_surrogates("a\ud83d\ude42b\ud800") == "a🙂b\ufffd"
    data, ends = joined(["a\ud800", "é", ""])
    assert data.tobytes().decode() == "a\ufffdé"
    assert ends.tolist() == [4, 6, 6]
