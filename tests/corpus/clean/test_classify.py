"""The quality classifier learns, says how well, keeps itself without pickle, and is the same in every process."""

import random
from pathlib import Path

import numpy as np
import pytest

from lmforge.corpus.clean.classify import classifier, load, train
from lmforge.errors import InputError
from lmforge.recipe import Quality

GOOD = "the smith put down his hammer and went to see who came along the old road by the river".split()  # noqa: SIM905
BAD = "buy cheap click here best price free offer now online casino bonus the and of pills winner".split()  # noqa: SIM905


def texts(words: list[str], count: int, seed: int) -> list[str]:
    pick = random.Random(seed)
    return [" ".join(pick.choices(words, k=30)) for _ in range(count)]


def test_it_learns_and_reports_its_accuracy() -> None:
    made = train(texts(GOOD, 100, 1), texts(BAD, 60, 2), {})
    assert made.report["accuracy"] >= 0.95
    assert made.report["low"] <= made.report["accuracy"] <= made.report["high"]
    assert 10 < made.report["items"] < 60
    assert min(map(made.probability, texts(GOOD, 20, 3))) > 0.5 > max(map(made.probability, texts(BAD, 20, 4)))
    assert 0 <= made.probability("") <= 1
    again = train(texts(GOOD, 100, 1), texts(BAD, 60, 2), {})
    assert np.array_equal(again.weights, made.weights)


def test_what_cannot_be_told_apart_is_reported_as_such() -> None:
    report = train(texts(GOOD, 100, 1), texts(GOOD, 100, 2), {}).report
    assert report["low"] < 0.6


def folders(root: Path) -> tuple[Path, Path]:
    for name, words in (("good", GOOD), ("bad", BAD)):
        (root / name).mkdir()
        for number, text in enumerate(texts(words, 40, len(name))):
            (root / name / f"{number}.txt").write_text(text)
    return root / "good", root / "bad"


def test_it_is_kept_and_trained_anew_when_the_examples_change(tmp_path: Path) -> None:
    good, bad = folders(tmp_path)
    settings = Quality(good=good, bad=bad, model=tmp_path / "kept" / "quality.npz")
    made = classifier(settings)
    kept = load(tmp_path / "kept" / "quality.npz")
    assert np.array_equal(kept.weights, made.weights)
    assert kept.report == made.report
    assert kept.probability("the old road") == made.probability("the old road")
    (good / "more.txt").write_text("something else entirely about rivers and roads")
    classifier.cache_clear()
    assert classifier(settings).report["good"] == 41
    assert load(tmp_path / "kept" / "quality.npz").report["good"] == 41


def test_damaged_models_and_few_examples_are_refused(tmp_path: Path) -> None:
    good, bad = folders(tmp_path)
    path = tmp_path / "quality.npz"
    for damage in (b"", b"no archive", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="not a quality classifier, or damaged"):
            classifier(Quality(good=good, bad=bad, model=path))
    np.savez(path, weights=np.array([{}], dtype=object), bias=0.0, report="{}")  # a pickle inside is never opened
    with pytest.raises(InputError, match="not a quality classifier"):
        load(path)
    for each in sorted(bad.iterdir())[5:]:
        each.unlink()
    with pytest.raises(InputError, match=r"corpus\.quality\.bad .*: 5 texts, too few"):
        classifier(Quality(good=good, bad=bad))
