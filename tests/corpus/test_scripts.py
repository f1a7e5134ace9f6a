"""What a sign is worth by script, and that nothing is lost when a text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus import scripts


@pytest.mark.parametrize(
    ("sign", "alone", "wide"),
    [("a", 0, 0), ("é", 0, 0), ("я", 0, 0), ("中", 1, 1), ("の", 1, 1), ("ー", 1, 1), ("한", 0, 1), ("ก", 1, 0),
     ("ກ", 1, 0), ("ក", 1, 0), ("က", 1, 0), ("ཀ", 1, 0), ("अ", 0, 0), ("！", 0, 0), ("。", 0, 0), ("،", 0, 0)],
)  # fmt: skip
def test_scripts_without_spaces_and_wide_ones(sign: str, alone: int, wide: int) -> None:
    flags = scripts.table()[ord(sign)]
    assert bool(flags & scripts.ALONE) == bool(alone)
    assert bool(flags & scripts.WIDE) == bool(wide)
    assert (scripts.worth()[ord(sign)] > 0) >= bool(alone)


@pytest.mark.parametrize("mark", ".!?。！？।۔።။།។")
def test_every_script_ends_its_sentences(mark: str) -> None:
    assert mark in scripts.terminal()


def test_letters_are_characters_and_punctuation_is_none() -> None:
    for mark in "，。！？：；、（）《》「」—…،؛؟।":
        assert not scripts.table()[ord(mark)] & scripts.TEXT
    assert scripts.characters("Москва") == 6
    assert scripts.characters("北京") == 4
    assert scripts.width("हिन्दी") < len("हिन्दी")


@given(st.text(st.sampled_from("ab 中文กษัไ한 \n")))
def test_pieces_hold_every_letter(text: str) -> None:
    words, between = scripts.pieces(text)
    assert "".join(between.join(words).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's  hat,\nred.", ["The", "cat's", "hat,", "red."]),
        ("我买了iPhone手机。（你呢？）", ["我", "买", "了", "iPhone", "手", "机。（", "你", "呢？）"]),
        ("ดีมาก 12 กก.", ["ดี", "ม", "า", "ก", "12", "ก", "ก."]),
        ("한국어 문장 हिन्दी में", ["한국어", "문장", "हिन्दी", "में"]),
        ("ሰላም፡ዓለም", ["ሰላም", "ዓለም"]),
        ("カタカナー", [*"カタカナー"]),
        (" \n", []),
    ],
)
def test_words_are_what_stands_between_blanks_or_signs(text: str, words: list[str]) -> None:
    assert scripts.words(text) == words


@given(st.text(st.sampled_from("ab 中文กษัไ한。，(\n\u3000፡")))
def test_units_are_words_with_their_blanks(text: str) -> None:
    assert "".join(scripts.units(text)) == text
    bare = [unit.strip() for unit in scripts.units(text.replace("፡", " "))]
    assert [unit for unit in bare if unit] == scripts.words(text)


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_has_as_many_codes_as_characters(text: str) -> None:
    assert len(scripts.codes(text)) == len(text)


def test_one_search_tells_texts_without_signs() -> None:
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    signs = [each for each in everything if scripts._SIGN.match(each) or scripts._WIDE_SIGN.match(each)]
    assert all(map(scripts._has_signs, signs))
    assert not any(map(scripts._has_signs, "aé’“…—– жγהע€№ấ"))
