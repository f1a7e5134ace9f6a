"""MODEL on the command line → the model and the tokenizer it was trained with, whatever its format.

runs/laptop                                   a run: its compressed model if there is one, else its chosen model
runs/laptop/train/checkpoints/step-00000500   a checkpoint
runs/laptop/compressed                        any saved model
runs/reviews/model/adapter                    an adapter, with the model that it belongs to
gpt2/                                         a checkpoint of transformers, or any other registered format
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG
from lmforge.formats.registry import FORMATS, Format
from lmforge.record import MANIFEST, content_hash

Which = Literal["auto", "model", "compressed"]


def load_any(path: Path, which: Which = "auto", verify: bool = True) -> LoadedModel:
    """Load what `path` means (see `resolve`); where `verify`, every file is checked against its manifest.

    Raises:
        InputError: no model there, a file was altered, or the tokenizer is not the one the model was trained with.
    """
    directory = resolve(path, which)
    format_there = detect(directory)
    if format_there is None:
        raise InputError(f"{directory}: no model of a known format ({', '.join(FORMATS)}); make the model again")
    return format_there.read(directory, verify)


def detect(path: Path) -> Format | None:
    """The format that a file or a folder is of; None where it is of none that is known."""
    return next((each for each in FORMATS.values() if each.detect(path)), None)


def resolve(path: Path, which: Which = "auto") -> Path:
    """The file or folder of the saved model that `path` (a run, a checkpoint or a model) means.

    Of a run, "auto" takes `compressed/` when it is complete, else `model/`.

    Raises:
        InputError: nothing there that can be loaded; says what was looked for.
    """
    if path.exists() and detect(path):
        if which != "auto":
            raise InputError(
                f"{path}: is itself a model, so there is no '{which}' in it; leave that choice out, or give a run"
            )
        return path
    if not path.is_dir():
        cause = f"is no file of a known format ({', '.join(FORMATS)})" if path.exists() else "no such folder"
        raise InputError(f"{path}: {cause}; give a run (runs/NAME), a checkpoint (…/step-N) or a folder with {CONFIG}")
    wanted = ("compressed", "model") if which == "auto" else (which,)
    for name in wanted:
        if content_hash(path / name) is not None:
            return path / name
    looked = " and ".join(f"{name}/" for name in wanted)
    state = "incomplete" if any((path / name).is_dir() for name in wanted) else "not there"
    raise InputError(
        f"{path}: no model to serve; looked for {CONFIG} and for a complete {looked} (with {MANIFEST}): {state}; "
        "run the train or compress stage first, or give a checkpoint"
    )
