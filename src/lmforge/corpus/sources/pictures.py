"""Which files a source of images is read from; `lmforge.corpus.images` reads them, in the network's size."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from lmforge.corpus.sources.files import File, files_of
from lmforge.errors import InputError
from lmforge.recipe import Source

DIGITS = "digits"  # scikit-learn's, which need no file
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")


def image_files(source: Source, notices: Counter[str]) -> list[File]:
    """The files that a source's set is read from; none of scikit-learn's digits.

    Raises:
        InputError: there are none.
    """
    assert source.path is not None
    if source.path.name == DIGITS and not source.path.exists():
        return []
    return files_of(source, (*SUFFIXES, ".npz"), notices, frozenset())


def not_texts(_: object, __: object) -> NoReturn:
    """What reads a source of images as texts.

    Raises:
        InputError: always.
    """
    raise InputError("corpus.sources: kind 'images' holds no texts; lmforge.corpus.images reads it")
