"""Looking at texts: how much there is, and what vocabulary it supports."""

from pathlib import Path

import pytest

from lmforge.plan.texts import bytes_per_token, look_at, vocabulary_for
from tests.plan.conftest import folder, sentences


def test_large_texts_are_not_read_whole(tmp_path: Path) -> None:
    texts = folder(tmp_path / "texts", 12)
    (texts / "zz.txt").write_text(sentences(99, 400))
    with (texts / "zz.txt").open("a") as file:
        for number in range(100, 112):
            file.write(sentences(number, 8000))
    looked_at = look_at(texts)
    assert looked_at.bytes == pytest.approx(sum(path.stat().st_size for path in texts.iterdir()), rel=0.01)
    assert (looked_at.context, looked_at.holdout) == (256, 0.05)


def test_vocabulary_follows_the_bytes() -> None:
    assert [vocabulary_for(n) for n in (50_000, 1_000_000, 30_000_000, 10**9, 10**13)] == [
        512,
        1024,
        4096,
        32_768,
        65_536,
    ]
    assert bytes_per_token(4096) == pytest.approx(3.1, abs=0.1)
