"""Sets of images with classes, whatever they are stored as, in one shape.

    FOLDER/CLASS/*.png   as torchvision's ImageFolder has it (ImageNet's too); CLASS may be GROUP/CLASS
    FILE.npz             images (N,S,S) or (N,S,S,C) uint8 with labels (N,) and, where there are any, class_names;
                         or with alphabet and character (N,), as of Omniglot
    digits               scikit-learn's 1,797 handwritten digits, which need no file

Classes belong to groups (alphabets); where a set has none each class is a group of its own. Which groups count as seen
depends on their names alone, so a recipe and the tasks of other recipes agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.sources.pictures import DIGITS, SUFFIXES
from lmforge.errors import InputError

Pixels = NDArray[np.uint8]
Classes = Literal["all", "seen", "unseen"]
SEEN = 0.75  # of the groups


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """`images` (N,C,S,S) uint8; `labels` (N,) numbers of classes; a name and a group for each class."""

    images: Pixels
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def of_classes(self, classes: Sequence[int]) -> ImageSet:
        """The images of some classes, which are numbered anew in this order."""
        place = np.full(len(self.names), -1)
        place[list(classes)] = np.arange(len(classes))
        kept = place[self.labels] >= 0
        return ImageSet(
            self.images[kept],
            place[self.labels[kept]],
            tuple(self.names[each] for each in classes),
            tuple(self.groups[each] for each in classes),
        )

    def part(self, which: Classes) -> ImageSet:
        """Its classes of seen groups, of unseen ones, or all: the groups in the order of their names' hashes, three
        quarters of them seen.

        Raises:
            InputError: nothing would be in one of the parts.
        """
        if which == "all":
            return self
        order = sorted(set(self.groups), key=lambda name: hashlib.sha256(name.encode()).digest())
        seen = set(order[: math.ceil(SEEN * len(order))])
        if len(seen) == len(order):
            raise InputError(f"images: classes of {len(order)} groups cannot be parted into seen and unseen ones")
        return self.of_classes(
            [number for number, group in enumerate(self.groups) if (group in seen) == (which == "seen")]
        )

    def mirrored(self) -> ImageSet:
        """Each class and its mirror image, a class of its own in the same group."""
        return ImageSet(
            np.concatenate([self.images, self.images[..., ::-1]]),
            np.concatenate([self.labels, self.labels + len(self.names)]),
            self.names + tuple(f"{name} mirrored" for name in self.names),
            self.groups * 2,
        )

    def turned(self) -> ImageSet:
        """Each quarter turn of each class as a class of its own, in the same group."""
        quarter = len(self.names)
        return ImageSet(
            np.concatenate([np.rot90(self.images, turn, (2, 3)) for turn in range(4)]),
            np.concatenate([self.labels + turn * quarter for turn in range(4)]),
            tuple(f"{name} turned {90 * turn}" if turn else name for turn in range(4) for name in self.names),
            self.groups * 4,
        )


def read_images(path: Path, size: int, channels: int) -> ImageSet:
    """A set in the size and channels that a network takes (made smaller by the mean of areas, larger
    smoothly; colours averaged or repeated).

    Raises:
        InputError: nothing of these kinds is there, or a file is damaged (names it).
    """
    if str(path.name) == DIGITS and not path.exists():
        images, labels, names, groups = _digits()
    elif path.is_dir():
        return _folder(path, size, channels)
    elif path.suffix == ".npz":
        images, labels, names, groups = _arrays(path)
    else:
        what = "no such file" if not path.exists() else "neither a folder of classes nor .npz"
        raise InputError(f"{path}: {what}; images are FOLDER/CLASS/*.png, an .npz file, or '{DIGITS}'")
    return ImageSet(_fitted(images, size, channels), labels, names, groups)


def _digits() -> tuple[Pixels, NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    pixels = (found.images * (255 / 16)).astype(np.uint8)
    return pixels, found.target.astype(np.int64), words, words


def _arrays(path: Path) -> tuple[Pixels, NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: not a readable .npz file ({error}); fetch it again") from error
    images = found.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1] != images.shape[2]:
        shape = "none" if images is None else f"{images.dtype} {images.shape}"
        raise InputError(f"{path}: images: {shape}; needed are square ones, (N,S,S) or (N,S,S,C) uint8")
    if "alphabet" in found and "character" in found:
        pairs = [(str(a), f"{a} {c}") for a, c in zip(found["alphabet"], found["character"], strict=True)]
        named = sorted(set(pairs))
        place = {pair: number for number, pair in enumerate(named)}
        labels = np.array([place[pair] for pair in pairs])
        return images, labels, tuple(name for _, name in named), tuple(group for group, _ in named)
    labels = found.get("labels", np.empty(0)).astype(np.int64)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{path}: labels: {len(labels)} for {len(images)} images; needed is one for each")
    names = tuple(str(name) for name in found.get("class_names", np.arange(int(labels.max(initial=0)) + 1)))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise InputError(f"{path}: labels: up to {labels.max()}, and class_names has {len(names)}")
    return images, labels, names, names


def _folder(path: Path, size: int, channels: int) -> ImageSet:
    """Classes in the order of their names; hidden files and other kinds are passed over."""
    from PIL import Image, UnidentifiedImageError

    by_class: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.suffix.lower() in SUFFIXES and len(inside.parts) > 1 and not inside.name.startswith("."):
            by_class.setdefault(inside.parent.as_posix(), []).append(file)
    if not by_class:
        raise InputError(f"{path}: no images in folders of classes; needed is {path}/CLASS/NAME.png")
    images, labels = [], []
    for number, files in enumerate(by_class.values()):
        for file in files:
            try:
                with Image.open(file) as picture:
                    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
            except (OSError, UnidentifiedImageError, ValueError) as error:
                raise InputError(f"{file}: not a readable image ({error}); replace it or take it away") from error
            images.append(_fitted(_square(pixels)[None], size, channels)[0])
            labels.append(number)
    names = tuple(name.replace("/", " ") for name in by_class)
    groups = tuple(name.rpartition("/")[0] or name for name in by_class)
    return ImageSet(np.stack(images), np.array(labels), names, groups)


def _square(pixels: Pixels) -> Pixels:
    """The middle of a picture, as high as wide."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def _fitted(images: Pixels, size: int, channels: int) -> Pixels:
    """(N,S,S) or (N,S,S,C) → (N,channels,size,size)."""
    from PIL import Image

    if images.shape[1:3] != (size, size):
        # smaller: the mean of areas; larger: smooth steps, since strokes have no corners where pixels had
        how = Image.Resampling.BICUBIC if images.shape[1] < size else Image.Resampling.BOX
        images = np.stack([np.asarray(Image.fromarray(each).resize((size, size), how)) for each in images])
    planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if planes.shape[1] != channels:
        grey = planes.mean(1, keepdims=True).round().astype(np.uint8)
        planes = np.repeat(grey, channels, 1)
    return np.ascontiguousarray(planes)
