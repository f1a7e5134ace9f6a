"""Sets of images in one shape, whatever they are stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmforge.corpus.images.sets import ImageSet, read_images
from lmforge.errors import InputError


def test_a_folder_of_classes_an_array_and_the_digits(tmp_path: Path) -> None:
    for name, shade in (("b/dark", 10), ("b/light", 200), ("a/mid", 90)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (12, 8), (shade,) * 3).save(tmp_path / "set" / name / f"{number}.png")
    found = read_images(tmp_path / "set", 4, 1)
    assert found.images.shape == (6, 1, 4, 4)
    assert found.names == ("a mid", "b dark", "b light")
    assert found.groups == ("a", "b", "b")
    assert found.images[:, 0, 0, 0].tolist() == [90, 90, 10, 10, 200, 200]
    np.savez(tmp_path / "one.npz", images=found.images[:, 0], labels=found.labels, class_names=np.array(found.names))
    again = read_images(tmp_path / "one.npz", 4, 3)
    assert again.images.shape == (6, 3, 4, 4)
    assert (again.images[:, 1] == found.images[:, 0]).all()
    digits = read_images(tmp_path / "digits", 8, 1)
    assert digits.images.shape == (1797, 1, 8, 8)
    assert len(digits.names) == 10


def test_characters_belong_to_alphabets_and_whole_alphabets_are_unseen(tmp_path: Path) -> None:
    alphabet = np.repeat(["A", "B", "C", "D"], 4)
    character = np.tile(np.repeat(["1", "2"], 2), 4)
    np.savez(tmp_path / "o.npz", images=np.zeros((16, 3, 3), np.uint8), alphabet=alphabet, character=character)
    found = read_images(tmp_path / "o.npz", 3, 1)
    assert len(found.names) == 8
    seen, unseen = found.part("seen"), found.part("unseen")
    assert not set(seen.groups) & set(unseen.groups)
    assert len(set(seen.groups)) == 3
    assert len(seen.images) + len(unseen.images) == 16
    assert sorted(set(unseen.labels.tolist())) == [0, 1]


def test_a_turn_is_another_class() -> None:
    one = ImageSet(np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2), np.array([0]), ("x",), ("g",))
    four = one.turned()
    assert four.names == ("x", "x turned 90", "x turned 180", "x turned 270")
    assert four.labels.tolist() == [0, 1, 2, 3]
    assert four.images[2].ravel().tolist() == [3, 2, 1, 0]
    assert four.groups == ("g",) * 4
    two = one.mirrored()
    assert two.images[1].ravel().tolist() == [1, 0, 3, 2]
    assert (two.names, two.labels.tolist(), two.groups) == (("x", "x mirrored"), [0, 1], ("g", "g"))


def test_what_is_no_set_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", images=np.zeros((2, 3, 4), np.uint8), labels=np.zeros(2))
    np.savez(tmp_path / "few.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.zeros(1))
    np.savez(
        tmp_path / "high.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.array([0, 3]), class_names=["a", "b"]
    )
    (tmp_path / "cut.npz").write_bytes((tmp_path / "few.npz").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn" / "c").mkdir(parents=True)
    (tmp_path / "torn" / "c" / "x.png").write_bytes(b"\x89PNG broken")
    for name, words in (
        ("bad.npz", "square ones"),
        ("few.npz", "labels: 1 for 2 images"),
        ("high.npz", "class_names has 2"),
        ("cut.npz", "not a readable .npz file"),
        ("none.npz", "not a readable .npz file"),
        ("none", "no such file"),
        ("empty", "no images in folders of classes"),
        ("torn", "x.png: not a readable image"),
    ):
        with pytest.raises(InputError, match=words):
            read_images(tmp_path / name, 4, 1)
    with pytest.raises(InputError, match="seen and unseen"):
        ImageSet(np.zeros((1, 1, 2, 2), np.uint8), np.array([0]), ("x",), ("g",)).part("seen")
