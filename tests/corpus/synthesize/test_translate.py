"""The form of parallel text: what counts is the translation, a prompt is a document's beginning."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.normalise import clean
from lmforge.corpus.sources.pairs import one_line, parallel_document, prompt_of
from lmforge.corpus.synthesize.translate import Likeness, back_translate, sentences


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_loss_counts_on_the_translation_alone(given_text: str, wanted: str) -> None:
    text, meta = parallel_document(given_text, wanted, "en", "de")
    [[start, end]] = meta["loss_spans"]
    assert text[:start] == prompt_of(given_text, "en", "de")
    assert text[start:end].strip() == one_line(wanted)
    assert end == len(text)
    assert text.count("\n") == 2
    assert text.endswith("\n")
    if one_line(given_text) and one_line(wanted):
        assert clean(text) == text  # so that the spans still point at the translation after cleaning


@given(st.text(max_size=40), st.text(max_size=40))
def test_both_directions_share_their_split(a: str, b: str) -> None:
    _, forward = parallel_document(a, b, "en", "de")
    _, back = parallel_document(b, a, "de", "en")
    assert forward["split_key"] == back["split_key"]
    assert (forward["languages"], back["languages"]) == (["en", "de"], ["de", "en"])


def test_sentences_end_in_every_script() -> None:
    text = "他来了。“真的吗？”她问。\nवह आया। सच? Er kam. Ja."
    assert [sentence for sentence, _ in sentences(text)] == [
        "他来了。", "“真的吗？”", "她问。", "वह आया।", "सच?", "Er kam.", "Ja."
    ]  # fmt: skip


@given(st.text(max_size=200))
def test_sentences_are_the_text(text: str) -> None:
    pairs = sentences(text)
    assert "".join(sentence + gap for sentence, gap in pairs) == text.lstrip()
    assert all(sentence and sentence == sentence.strip() for sentence, _ in pairs)


def test_sentences_end_where_they_should() -> None:
    text = 'One is 3.5 long. "Two!" said he.\n\nA heading\nThree? Yes…'
    assert [sentence for sentence, _ in sentences(text)] == [
        "One is 3.5 long.",
        '"Two!"',
        "said he.",
        "A heading",
        "Three?",
        "Yes…",
    ]


def test_back_translation_keeps_the_layout_and_asks_each_sentence_once() -> None:
    asked = []

    def translate(texts: Sequence[str], source: str, target: str) -> list[str]:
        asked.append((list(texts), source, target))
        return ["" if "empty" in text else text.replace("big", "large") for text in texts]

    translated = back_translate(["A big dog.\n\nA cat. ", "A cat. An empty one."], translate, "en", "de")
    assert translated == ["A large dog.\n\nA cat. ", "A cat. An empty one."]
    assert [(source, target) for _, source, target in asked] == [("en", "de"), ("de", "en")]
    assert asked[0][0] == ["A big dog.", "A cat.", "An empty one."]


def test_likeness() -> None:
    same, other = Likeness(), Likeness()
    same.add("The cat sat on the mat.", "The cat sat on the mat.")
    other.add("The cat sat on the mat.", "A dog sat on the mat.")
    assert same.result() == {
        "pairs": 1,
        "chrf": 100.0,
        "bleu": pytest.approx(100.0),
        "kept": 1.0,
        "novel_1": 0.0,
        "novel_2": 0.0,
        "novel_3": 0.0,
    }
    result = other.result()
    assert result["kept"] == 4 / 5  # the, sat, on, mat; not cat
    assert result["novel_1"] == 2 / 6
    assert result["novel_2"] == 2 / 5
    assert Likeness().result()["pairs"] == 0
