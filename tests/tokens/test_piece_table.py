"""The table counts as a dictionary does, however small it begins; its runs on disk come back in parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import LmforgeError
from lmforge.tokens.piece_table import PieceTable, open_run, part_of_run, write_run
from lmforge.tokens.pretokenize import cut


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), max_size=30), st.booleans())
def test_it_counts_what_texts_are_cut_into(texts: list[str], superwords: bool) -> None:
    table = PieceTable(1 << 62, None)
    table.add_texts(texts, superwords)
    expected = Counter(piece.encode() for text in texts for piece in cut(text, superwords))
    assert dict(table.held().pairs()) == expected
    ordered = table.pieces()
    assert (np.diff(ordered.prints) >= 0).all()
    assert dict(ordered.pairs()) == expected


def test_a_run_comes_back_in_parts(tmp_path: Path) -> None:
    table = PieceTable(1 << 62, None)
    table.add_texts([f"word{number} and again" for number in range(2000)], False)
    write_run(tmp_path / "run", table.pieces())
    run = open_run(tmp_path / "run")
    middle = int(run.prints[len(run) // 2])
    parts = [part_of_run(run, low, high) for low, high in ((0, middle), (middle, (1 << 63) - 1))]
    again = PieceTable(1 << 62, None)
    for part in parts:
        again.add_pieces(*part)
    assert dict(again.held().pairs()) == dict(table.held().pairs())


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    table = PieceTable(1 << 62, None)
    with pytest.raises(LmforgeError, match="free disk space, set TMPDIR"):
        write_run(tmp_path / "missing" / "run", table.pieces())
