"""Perplexity: what is like the reference passes, what is not does not, and the bound is the reference's own
percentile."""

import random
from pathlib import Path

import pytest

from lmforge.corpus.clean.perplexity import Unlikeness, unlikeness
from lmforge.errors import InputError
from lmforge.recipe import Perplexity

WORDS = "the smith put down his hammer and went to see who came along the old road by river with iron for forge".split()  # noqa: SIM905


def prose(number: int) -> str:
    pick = random.Random(number)
    return ". ".join(" ".join(pick.choices(WORDS, k=9)).capitalize() for _ in range(12)) + "."


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    for number in range(300):
        (folder / f"{number}.txt").write_text(prose(number))
    return folder


def test_likeness_and_bound(reference: Path) -> None:
    model = unlikeness(Perplexity(reference=reference, percentile=100))
    assert model.held_out == 30
    assert not any(
        model.is_unlike(prose(1000 + number))
        for number in range(20)
        if model.bits_per_byte(prose(1000 + number)) <= model.bound
    )
    assert sum(model.is_unlike(prose(1000 + number)) for number in range(50)) <= 5
    pick = random.Random(1)
    for other in ("".join(pick.choices("abcdefghijklmnop ", k=900)), "01101001 " * 99, "Ω≈ç√∫˜µ≤≥÷" * 40):
        assert model.is_unlike(other)
    assert model.bits_per_byte("") == 0
    strict = unlikeness(Perplexity(reference=reference, percentile=50))
    assert strict.bound < model.bound
    assert unlikeness(Perplexity(reference=reference, most_bits_per_byte=0.01)).is_unlike(prose(1))


def test_it_is_the_same_after_it_was_kept(reference: Path, tmp_path: Path) -> None:
    model = unlikeness(Perplexity(reference=reference, percentile=90))
    model.save(tmp_path / "model.npz")
    loaded = Unlikeness.load(tmp_path / "model.npz")
    assert (loaded.bound, loaded.trained_bytes, loaded.held_out) == (model.bound, model.trained_bytes, model.held_out)
    for text in (prose(1), prose(1001), "01101001 " * 99):
        assert loaded.bits_per_byte(text) == model.bits_per_byte(text)


def test_a_reference_too_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1))
    with pytest.raises(InputError, match=r"corpus\.perplexity\.reference .*: 1 documents, too few"):
        unlikeness(Perplexity(reference=tmp_path))
