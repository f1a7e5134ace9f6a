"""The form of parallel text: what counts is the translation, a prompt is a document's beginning."""

from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.clean import clean
from lmforge.corpus.translate import one_line, parallel_document, prompt_of


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
