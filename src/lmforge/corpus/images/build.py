"""Sources of images → documents: what a recipe whose sources are all of kind `images` learns from.

    image set ─classes, turns─▶ one document an image:      <|image|> NAME
                             └▶ one document an episode:    <|image|> A <|image|> B … <|image|> A

An image's pixels stand in its document (`meta.images`, base64 of (C,S,S) uint8), its place in the text is the mark
`<|image|>`, and what counts in the loss are names. In an episode (Vinyals et al. 2016, "Matching networks", section
2) classes have letters in place of names, drawn anew, so that they can be known from the images before alone; what
counts there are the letters of the last image of each class. Nothing is cleaned.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lmforge.corpus.images import IMAGE_MARK
from lmforge.corpus.images.sets import ImageSet, Pixels, read_images
from lmforge.corpus.shuffle import ShardWriter
from lmforge.corpus.sources.document import source_name
from lmforge.corpus.splits import SPLITS, split_at, unit
from lmforge.errors import InputError
from lmforge.recipe import Recipe, Source
from lmforge.record import atomic_directory

MARK = IMAGE_MARK
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
EPISODES = 10_000


def reads_images(recipe: Recipe) -> bool:
    """Whether the sources of a recipe are images.

    Raises:
        InputError: some are and others are not, or the network takes none.
    """
    kinds = [source.kind == "images" for source in recipe.corpus.sources]
    if not any(kinds):
        return False
    if not all(kinds):
        raise InputError("corpus.sources: images and texts are in one recipe; give each a recipe of its own")
    if not recipe.model.image_size or not recipe.model.image_patch:
        raise InputError("model.image_size: the sources are images; give image_size and image_patch")
    return True


def image_set(source: Source, recipe: Recipe) -> tuple[ImageSet, np.ndarray[Any, Any]]:
    """What a source holds, as the recipe's network takes it, and the split of each image: by its pixels as they lie
    before any turn, so that an image, its turns and its mirror image have one.

    Raises:
        InputError: as `read_images` and `ImageSet.part`.
    """
    assert source.path is not None
    found = read_images(source.path, recipe.model.image_size, recipe.model.image_channels).part(source.classes)
    bounds = (recipe.corpus.holdout / 2, recipe.corpus.holdout)
    splits = np.array([split_at(unit(hashlib.sha256(image.tobytes()).digest()[:8]), bounds) for image in found.images])
    if source.mirrored:
        found, splits = found.mirrored(), np.tile(splits, 2)
    return (found.turned(), np.tile(splits, 4)) if source.turned else (found, splits)


def moved(image: Pixels, most: int, rng: np.random.Generator) -> Pixels:
    """(C,S,S) moved by up to `most` pixels in each direction; what comes in is the colour of its corner."""
    if not most:
        return image
    corner = int(image[0, 0, 0])
    size = image.shape[-1]
    padded = np.pad(image, ((0, 0), (most, most), (most, most)), constant_values=corner)
    down, right = rng.integers(0, 2 * most + 1, 2)
    return padded[:, down : down + size, right : right + size]


def warped(image: Pixels, much: float, rng: np.random.Generator) -> Pixels:
    """(C,S,S) turned, stretched along each axis and sheared around its middle, each at random up to a bound; with
    `much` 1 the bounds are 30 degrees, a factor of 1.5 and 0.5 pixels a pixel. What comes in is the colour of its
    corner."""
    if not much:
        return image
    from PIL import Image

    turn, wide, high, shear = rng.uniform(-much, much, 4) * (math.pi / 6, math.log(1.5), math.log(1.5), 0.5)
    cos, sin = math.cos(turn), math.sin(turn)
    back = np.array([[cos, -sin], [sin, cos]]) @ [[math.exp(wide), shear], [0, math.exp(high)]]
    centre = np.full(2, image.shape[-1] / 2)
    (a, b), (d, e) = back
    c, f = centre - back @ centre
    planes = [
        Image.fromarray(plane).transform(
            plane.shape,
            Image.Transform.AFFINE,
            (a, b, c, d, e, f),
            Image.Resampling.BILINEAR,
            fillcolor=int(plane[0, 0]),
        )
        for plane in np.ascontiguousarray(image)
    ]
    return np.stack([np.asarray(plane) for plane in planes])


def changed(image: Pixels, source: Source, split: str, rng: np.random.Generator) -> Pixels:
    """An image as it stands in a split: to learn from it is warped and moved as the source says."""
    if split != "train":
        return image
    return moved(warped(image, source.warped, rng), source.moved, rng)


def build_images(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Make the corpus directory `out` from a recipe's images and return its figures (also in its statistics.json).

    Images fall into splits by their pixels, so that no image of validation or test is learned from, turned or moved or
    in an episode.

    Raises:
        InputError: a source that cannot be read, or no images for a split. `out` then stays as it was.
    """
    with atomic_directory(out) as folder:
        writers = {split: ShardWriter(folder / "documents", split) for split in SPLITS}
        classes: Counter[str] = Counter()
        for number, source in enumerate(recipe.corpus.sources):
            whole, split = image_set(source, recipe)
            rng = np.random.default_rng([recipe.seed, number])
            classes[source_name(source)] += len(whole.names)
            for name in SPLITS:
                mine = ImageSet(whole.images[split == name], whole.labels[split == name], whole.names, whole.groups)
                for line, size in _documents(source, mine, name, recipe, rng):
                    writers[name].write(line, size)
        for writer in writers.values():
            writer.close()
        if empty := [name for name in SPLITS if not writers[name].documents]:
            raise InputError(
                f"corpus.sources: no images for the {empty[0]} split; add images, or change corpus.holdout (now "
                f"{recipe.corpus.holdout})"
            )
        sizes = {name: {"documents": writer.documents, "bytes": writer.bytes} for name, writer in writers.items()}
        figures = {
            "documents_in": sum(each["documents"] for each in sizes.values()),
            "documents_out": sum(each["documents"] for each in sizes.values()),
            "dropped": {},
            "bytes_out": sum(each["bytes"] for each in sizes.values()),
            "entropy": {},
            "notices": {},
            "splits": sizes,
            "words": 0,
            "images": {"classes": dict(classes)},
        }
        (folder / "statistics.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _documents(
    source: Source, images: ImageSet, split: str, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[bytes, int]]:
    """The documents of one split, each with the bytes of its text, in a random order."""
    patches = (recipe.model.image_size // recipe.model.image_patch) ** 2
    if source.episodes is None:
        copies = source.copies_of_each if split == "train" else 1
        for copy, at in enumerate(np.concatenate([rng.permutation(len(images.images)) for _ in range(copies)])):
            name = images.names[images.labels[at]]
            text = f"{MARK} {name}"
            pixels = changed(images.images[at], source, split, rng)
            yield _line(source, f"{split}:{copy}", patches, text, [pixels], [[len(MARK), len(text)]])
        return
    ways, shots = source.episodes
    share = 1.0 if split == "train" else recipe.corpus.holdout / 2
    for number in range(max(1, round((source.documents or EPISODES) * share))):
        episode = _episode(images, ways, shots, partial(changed, source=source, split=split, rng=rng), rng)
        if episode is None:
            if split == "train":
                raise InputError(
                    f"{source.path}: episodes: fewer than {ways} classes have {shots + 1} images in the {split} split"
                )
            return
        yield _line(source, f"{split}:{number}", patches, *episode)


def _episode(
    images: ImageSet, ways: int, shots: int, change: Callable[[Pixels], Pixels], rng: np.random.Generator
) -> tuple[str, list[Pixels], list[list[int]]] | None:
    """Text, pixels and what counts of one; None where too few classes have images enough."""
    if ways > len(LETTERS):
        raise InputError(f"episodes: {ways} classes; at most {len(LETTERS)} have letters")
    counts = np.bincount(images.labels, minlength=len(images.names))
    enough = np.flatnonzero(counts > shots)
    if len(enough) < ways:
        return None
    chosen = rng.choice(enough, ways, replace=False)
    letters = rng.permutation(list(LETTERS))[:ways]
    shown: list[tuple[int, str]] = []
    asked: list[tuple[int, str]] = []
    for letter, each in zip(letters, chosen, strict=True):
        picked = rng.choice(np.flatnonzero(images.labels == each), shots + 1, replace=False)
        shown += [(int(at), str(letter)) for at in picked[:-1]]
        asked.append((int(picked[-1]), str(letter)))
    order = [shown[at] for at in rng.permutation(len(shown))] + [asked[at] for at in rng.permutation(len(asked))]
    text, spans = "", []
    for place, (_, letter) in enumerate(order):
        text += f"{MARK} {letter}"
        if place >= len(shown):
            spans.append([len(text) - 2, len(text)])
    return text, [change(images.images[at]) for at, _ in order], spans


def _line(
    source: Source, name: str, patches: int, text: str, images: list[Pixels], spans: list[list[int]]
) -> tuple[bytes, int]:
    meta = {
        "images": [base64.b64encode(image.tobytes()).decode() for image in images],
        "image_shape": list(images[0].shape),
        "image_tokens": patches,
        "loss_spans": spans,
    }
    size = len(text.replace(MARK, ""))
    document = {"id": name, "text": text, "source": source_name(source), "genre": "images", "meta": meta}
    return orjson.dumps(document) + b"\n", size
