"""Sections of a recipe that parts of the program bring along: which names a recipe may use, and their settings.

A part registers its section where it is written (see `lmforge.registry`); the modules listed here are imported when a
recipe names a part that is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lmforge.registry import Registry

# where the package's own compression methods register themselves: one line a method
COMPRESSION_METHODS = (
    "lmforge.compress.quantize",
    "lmforge.compress.distil",
    "lmforge.compress.prune",
    "lmforge.compress.factorize",
    "lmforge.compress.sparsify",
    "lmforge.compress.linearize",
    "lmforge.compress.qat",
)
COMPRESSION_STEPS: Registry[type[BaseModel]] = Registry("compression method", COMPRESSION_METHODS)
# "shape" and "name" of the model that `model.base` names, given it and the folder of the recipe: which formats of
# models there are is known further down (lmforge.formats.base)
BASES: Registry[Callable[[str, Path], Any]] = Registry("reader of bases", ("lmforge.formats.base",))
