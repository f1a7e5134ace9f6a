"""The files of a source of images, which change with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.corpus.sources.kinds import fingerprint, parts
from lmforge.errors import InputError
from lmforge.recipe import Source


def test_a_source_changes_with_its_files_and_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"1")
    source = Source(kind="images", path=tmp_path)
    before = fingerprint(source)
    (tmp_path / "a" / "y.PNG").write_bytes(b"2")
    assert fingerprint(source) != before
    assert fingerprint(Source(kind="images", path=Path("digits")))
    with pytest.raises(InputError, match="holds no texts"):
        parts(source)
    with pytest.raises(InputError, match="does not exist"):
        fingerprint(Source(kind="images", path=tmp_path / "none"))
