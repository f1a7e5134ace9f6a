"""Marks, what counts and pixels of documents with images."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from lmforge.errors import InputError
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.images import Pictures, PictureWriter, has_images, marked_tokens, pictures_of, scaled
from lmforge.tokens.special_tokens import IMAGE

TOKENIZER = train_tokenizer(["one two"], 258, images=True)


def document(text: str, images: int, **meta: object) -> dict[str, object]:
    data = [base64.b64encode(bytes([number] * 4)).decode() for number in range(images)]
    return {"id": "d", "text": text, "meta": {"images": data, "image_shape": [1, 2, 2], "image_tokens": 3, **meta}}


def test_marks_stand_where_images_do_and_only_what_is_in_spans_counts() -> None:
    tokens, counted, places = marked_tokens(document(f"a{IMAGE}bc{IMAGE}", 2), TOKENIZER)
    mark = TOKENIZER.special[IMAGE]
    assert [token == mark for token in tokens] == [False] * 2 + [True] * 3 + [False] * 2 + [True] * 3
    assert places == [2, 7]
    assert counted.tolist() == [True] * 2 + [False] * 3 + [True] * 2 + [False] * 3
    at = len(f"a{IMAGE}b")
    _, counted, _ = marked_tokens(document(f"a{IMAGE}bc", 1, loss_spans=[[at, at + 1]]), TOKENIZER)
    assert counted.tolist() == [True, False] + [False] * 3 + [False, True]
    assert not has_images({"text": IMAGE})
    assert mark not in TOKENIZER.encode(IMAGE)  # a text that speaks of the mark has none


def test_pixels_come_back_for_any_pieces(tmp_path: Path) -> None:
    writers = [PictureWriter(tmp_path, name) for name in ("a", "b")]
    images = pictures_of(document(IMAGE * 3, 3))
    for writer, place, image in ((writers[0], 1, images[0]), (writers[0], 9, images[1]), (writers[1], 2, images[2])):
        writer.add(place, image)
    files = [{"tokens": 20, **writers[0].end()}, {"tokens": 7, **PictureWriter(tmp_path, "none").end()}]
    files.append({"tokens": 9, **writers[1].end()})
    pictures = Pictures(tmp_path, files, 7)
    assert pictures.starts.tolist() == [1, 9, 29]
    found = pictures.of_pieces(np.array([25, 0, 3]), np.array([10, 5, 3]))
    assert found[:, 0, 0, 0].tolist() == [2, 0]
    assert pictures.of_pieces(np.array([2]), np.array([3])).shape == (0, 1, 2, 2)
    assert scaled(np.array([0, 255], np.uint8)).tolist() == [-1, 1]
    (tmp_path / "a.images").write_bytes(b"short")
    with pytest.raises(InputError, match="run the tokens stage again"):
        Pictures(tmp_path, files, 7)


def test_images_that_do_not_fit_their_marks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 images for 2 marks"):
        pictures_of(document(IMAGE * 2, 1))
    with pytest.raises(InputError, match="run the corpus stage"):
        pictures_of(document(IMAGE, 1, image_shape=[3]))
    writer = PictureWriter(tmp_path, "a")
    writer.add(0, np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(InputError, match="in one corpus"):
        writer.add(9, np.zeros((1, 3, 3), np.uint8))
