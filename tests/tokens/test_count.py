"""The same counts for any threads, batches and budget; the commonest where not all fit."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError, LmforgeError
from lmforge.tokens import count, piece_table
from lmforge.tokens.count import count_pieces, weighted_pieces
from lmforge.tokens.pretokenize import cut

TEXTS = [f"word{number % 97} of {number * number} lines\n    value_{number % 13} = (x)\n" * 3 for number in range(400)]

# So many different words that each of three threads fills its table more than once, however the batches fall to them.
WORDS = ["".join(chr(97 + number // 26**place % 26) for place in range(3)) for number in range(6000)]
MANY = [*TEXTS, *(" ".join(WORDS[start : start + 20]) for start in range(0, len(WORDS), 20))]


def by_hand(texts: list[str], superwords: bool = False) -> dict[bytes, int]:
    return Counter(piece.encode() for text in texts for piece in cut(text, superwords))


@given(st.lists(st.text(max_size=30), max_size=8), st.booleans())
@settings(max_examples=100)
def test_pieces_are_counted(texts: list[str], superwords: bool) -> None:
    pieces, left_out = count_pieces(texts, superwords)
    assert dict(pieces.pairs()) == by_hand(texts, superwords)
    assert len(pieces) == len(by_hand(texts, superwords))
    assert left_out == 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("superwords", [False, True])
def test_neither_threads_nor_batches_nor_spilling_change_anything(
    threads: int, superwords: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = count_pieces(MANY, superwords)
    monkeypatch.setattr(count, "BATCH_BYTES", 3000)
    spilled: list[Path] = []
    write = piece_table.write_run
    monkeypatch.setattr(piece_table, "write_run", lambda path, pieces: (spilled.append(path), write(path, pieces))[1])
    monkeypatch.setattr(count, "LEAST_ROOM", 1 << 12)
    parts, left_out = count_pieces(MANY, superwords, max_ram=1 << 15, threads=threads, weight_of=1)
    assert len(spilled) > threads
    assert left_out == 0
    for kind in ("data", "ends", "counts", "prints"):
        assert np.array_equal(getattr(whole, kind), getattr(parts, kind)), kind


@pytest.mark.parametrize("threads", [1, 2])
def test_where_not_all_fit_the_commonest_are_kept_and_the_same_ones_always(threads: int) -> None:
    everything = by_hand(TEXTS)
    kept, least = count_pieces(TEXTS, max_ram=2000, weight_of=2, threads=threads)
    found = dict(kept.pairs())
    assert 900 < sum(map(len, found)) <= 1000
    assert all(everything[piece] == number for piece, number in found.items())
    assert {piece for piece, number in everything.items() if number >= least} <= set(found)
    assert min(found.values()) >= least - 1
    assert found == dict(count_pieces(TEXTS[::-1], max_ram=2000, weight_of=2)[0].pairs())


def test_weights_add_up_beyond_32_bits() -> None:
    pieces = weighted_pieces([(b"a", 2**40), (b"b", 1), (b"a", 2**40)])
    assert dict(pieces.pairs()) == {b"a": 2**41, b"b": 1}
    with pytest.raises(InputError, match="its count -1 is not between"):
        weighted_pieces([(b"a", -1)])


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(count, "LEAST_ROOM", 1 << 14)
    with pytest.raises(LmforgeError, match=r"No space left on device.*raise tokens\.max_ram"):
        count_pieces(TEXTS, max_ram=1 << 14, threads=2)


def test_an_error_in_a_thread_is_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        yield "text"
        raise ValueError("a broken source")

    with pytest.raises(ValueError, match="a broken source"):
        count_pieces(broken(), threads=2)  # type: ignore[arg-type]
