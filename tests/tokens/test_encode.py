"""Merging by rank: in a line or with a heap, remembered or not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.tokens import encode
from lmforge.tokens.encode import Encoder, ranks_of
from lmforge.tokens.pretokenize import as_bytes, classes_for, cut, joined

IDENTITY = np.arange(256, dtype=np.int32)
A, B = ord("a"), ord("b")
MERGES = np.array(
    [[A, B, 256], [B, B, 257], [256, 256, 258], [A, A, 259], [259, B, 260], [258, 257, 261], [259, 259, 262]],
    dtype=np.int32,
)
RANKS = ranks_of(MERGES, IDENTITY)


def plainly(piece: bytes) -> list[int]:
    """The lowest rank first, leftmost of equal ones, until no pair has one."""
    ranks = {(left, right): (rank, new) for rank, (left, right, new) in enumerate(MERGES.tolist())}
    tokens = list(piece)
    while True:
        found = [(*ranks[pair], at) for at, pair in enumerate(pairwise(tokens)) if pair in ranks]
        if not found:
            return tokens
        _, new, at = min(found, key=lambda each: (each[0], each[2]))
        tokens[at : at + 2] = [new]


def encoded(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    data, ends = joined(texts)
    tokens, token_ends = encoder.encode(data, ends, classes_for(data, True))
    return [part.tolist() for part in np.split(tokens, token_ends[:-1])] if texts else []


@pytest.mark.parametrize("line", [0, 48])
@given(texts=st.lists(st.text("ab c", max_size=120), max_size=4))
@settings(max_examples=200)
def test_pieces_are_merged_by_rank(line: int, texts: list[str]) -> None:
    encoder = Encoder(RANKS, superwords=line == 0)  # the pieces of superwords are long enough for the heap
    expected = [[token for piece in cut(text, line == 0) for token in plainly(piece.encode())] for text in texts]
    assert encoded(encoder, texts) == expected
    assert encoded(encoder, texts) == expected  # from memory


def test_a_full_memory_is_emptied_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"ab{chr(97 + number)}b aab" for number in range(26)]
    expected = encoded(Encoder(RANKS, False), texts)
    monkeypatch.setattr(encode, "MEMO_PIECES", 4)
    small = Encoder(RANKS, False)
    assert encoded(small, texts) == expected
    assert small.memo.used[0] < 4


def test_a_piece_longer_than_the_scratch_enlarges_it() -> None:
    encoder = Encoder(RANKS, False)
    assert encoded(encoder, ["x", "ab" * 4000, "ab"]) == [[ord("x")], [258] * 2000, [256]]
    assert len(encoder.scratch.tokens) >= 8000


def test_nothing_gives_nothing() -> None:
    tokens, ends = Encoder(RANKS, False).encode(
        as_bytes(b""), np.zeros(2, dtype=np.int64), classes_for(as_bytes(b""), True)
    )
    assert len(tokens) == 0
    assert ends.tolist() == [0, 0]
