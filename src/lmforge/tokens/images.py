"""Images beside token shards: which tokens are their marks, and their pixels.

    <|image|> in a document's text ─▶ as many marks (the token IMAGE) as the network makes patches of an image
    {split}-NNNNN.images           the pixels (n,C,S,S) uint8, in the order of reading
    {split}-NNNNN.places.npy       (n,) int64, the place of each image's first mark in the shard

In a batch marks are PATCH, and the images of its rows come beside them, in the order of reading.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.tokens.special_tokens import IMAGE
from lmforge.tokens.tokenizer import Tokenizer

PATCH = -1  # the id that stands for a patch where a network reads tokens
Pixels = NDArray[np.uint8]


def pictures_of(document: Mapping[str, Any]) -> list[Pixels]:
    """The images (C,S,S) of a document of the corpus, in the order of their marks.

    Raises:
        InputError: not as many as there are marks, or not of the shape that is said.
    """
    meta = document.get("meta") or {}
    shape = tuple(meta.get("image_shape", ()))
    try:
        found = [np.frombuffer(base64.b64decode(each), np.uint8).reshape(shape) for each in meta.get("images", ())]
    except (ValueError, TypeError) as error:
        raise InputError(
            f"corpus document {document.get('id')!r}: meta.images: {error}; run the corpus stage"
        ) from error
    if len(found) != document["text"].count(IMAGE):
        raise InputError(
            f"corpus document {document.get('id')!r}: {len(found)} images for {document['text'].count(IMAGE)} marks; "
            "run the corpus stage again"
        )
    return found


def has_images(document: Mapping[str, Any]) -> bool:
    """Whether a document's text has marks of images."""
    return bool((document.get("meta") or {}).get("images"))


def marked_tokens(document: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[list[int], NDArray[np.bool_], list[int]]:
    """A document's tokens, what stands before it first; which of them count; and where the marks of each image begin.
    Without `meta.loss_spans` the text counts and marks do not."""
    meta = document["meta"]
    mark, many = tokenizer.special[IMAGE], int(meta["image_tokens"])
    spans = meta.get("loss_spans")
    tokens, counted, places = [tokenizer.begin], [True], []
    at = 0  # characters before the piece
    for number, piece in enumerate(document["text"].split(IMAGE)):
        if number:
            places.append(len(tokens))
            tokens += [mark] * many
            counted += [False] * many
            at += len(IMAGE)
        ids, where = tokenizer.encode_spans(piece)
        inside = np.ones(len(ids), dtype=bool) if spans is None else np.zeros(len(ids), dtype=bool)
        for first, last in spans or ():
            inside |= (where[:, 0] < last - at) & (where[:, 1] > first - at)
        tokens += list(map(int, ids))
        counted += inside.tolist()
        at += len(piece)
    return tokens, np.array(counted), places


class PictureWriter:
    """The images of one shard, written as they come."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.places: list[int] = []
        self.shape: tuple[int, ...] | None = None
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def add(self, place: int, image: Pixels) -> None:
        """An image whose first mark is the token at `place` of the shard.

        Raises:
            InputError: its shape is not that of those before it.
        """
        if self._file is None:
            self._file, self.shape = (self.folder / f"{self.name}.images").open("wb"), image.shape
        if image.shape != self.shape:
            raise InputError(f"images of {self.shape} and of {image.shape} in one corpus; run the corpus stage again")
        data = np.ascontiguousarray(image).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.places.append(place)

    def end(self) -> dict[str, Any]:
        """The entry's further keys; none where there were no images."""
        if self._file is None:
            return {}
        self._file.close()
        places = self.folder / f"{self.name}.places.npy"
        np.save(places, np.array(self.places, dtype="<i8"))
        return {
            "images_name": f"{self.name}.images",
            "images_sha256": self._digest.hexdigest(),
            "image_shape": list(self.shape or ()),
            "places_name": places.name,
            "places_sha256": hashlib.sha256(places.read_bytes()).hexdigest(),
        }


class Pictures:
    """The images of a split, memory-mapped: `starts` (n,), the place in the split of each one's first mark."""

    def __init__(self, directory: Path, files: Sequence[Mapping[str, Any]], mark: int) -> None:
        self.mark = mark
        self._maps: list[Pixels] = []
        starts, first = [np.empty(0, dtype=np.int64)], 0
        for file in files:
            if "images_name" in file:
                places = np.load(directory / file["places_name"], allow_pickle=False)
                path, shape = directory / file["images_name"], (len(places), *file["image_shape"])
                if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
                    raise InputError(f"{path}: missing, or not {len(places)} images; run the tokens stage again")
                self._maps.append(np.asarray(np.memmap(path, np.uint8, "r", shape=shape)))
                starts.append(places + first)
            first += file["tokens"]
        self.starts = np.concatenate(starts)
        self._first = np.cumsum([0, *(len(each) for each in self._maps)])

    def of_pieces(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Pixels:
        """The images whose marks begin within some pieces of the split, piece after piece: (n,C,S,S)."""
        low, high = np.searchsorted(self.starts, starts), np.searchsorted(self.starts, starts + lengths)
        found = [self._one(number) for a, b in zip(low.tolist(), high.tolist(), strict=True) for number in range(a, b)]
        return np.stack(found) if found else np.empty((0, *self._maps[0].shape[1:]), dtype=np.uint8)

    def _one(self, number: int) -> Pixels:
        part = int(np.searchsorted(self._first, number, side="right")) - 1
        image: Pixels = self._maps[part][number - self._first[part]]
        return image


def scaled(images: Pixels) -> NDArray[np.float32]:
    """Pixels from 0 to 255 → from −1 to 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
