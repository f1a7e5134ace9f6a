"""Splits follow each text's digest; a small corpus still fills all three, or says why it cannot."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.sources.document import Document
from lmforge.corpus.splits import place_of, split_at, split_bounds, unit
from lmforge.errors import InputError


def document(**meta: str) -> Document:
    return Document(id="1", text="", source="", genre="web", meta=meta)


def test_a_place_is_the_texts_or_that_of_those_it_belongs_to() -> None:
    digest, other = bytes(32), b"\x80" + bytes(31)
    assert place_of(document(), digest) == 0 == unit(digest[:8])
    assert place_of(document(), other) == 0.5
    assert place_of(document(split_key="a"), digest) == place_of(document(split_key="a"), other) not in (0, 0.5)
    assert split_at(place_of(document(synthetic="augment"), digest), (0.4, 0.499)) == "train"
    assert place_of(document(synthetic="procedural"), digest) == place_of(document(), digest)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=3, max_size=40, unique_by=lambda digest: digest[:7]))
def test_every_split_has_a_document_in_any_batching(digests: list[bytes]) -> None:
    places = np.array([place_of(document(), each) for each in digests])
    bounds = split_bounds(0.1, lambda: [places], Counter)
    assert bounds == split_bounds(0.1, lambda: [places[:1], places[1:1], places[1:]], Counter)
    assert {split_at(place, bounds) for place in places} == {"train", "valid", "test"}


def test_too_few_is_said() -> None:
    with pytest.raises(
        InputError, match=r"2 documents are left \(dropped: 4 too_short\), too few to hold some out: at least one each"
    ):
        split_bounds(0.1, lambda: [np.array([0.5, 0.6])], lambda: Counter(too_short=4))
    with pytest.raises(InputError, match="all fall in the held-out part"):
        split_bounds(0.4, lambda: [np.array([0.01, 0.2, 0.3])], Counter)
