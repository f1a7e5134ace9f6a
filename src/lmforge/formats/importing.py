"""`lmforge import`: a model of another format → a folder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.formats.base import locate
from lmforge.formats.gguf import gguf_in, read_gguf
from lmforge.formats.registry import FORMATS
from lmforge.formats.transformers import import_model as import_checkpoint
from lmforge.model.room import with_room


def import_model(given: str, out: Path, context: int | None = None, blocks: bool = False) -> dict[str, Any]:
    """Write the model that `given` names (a folder of transformers, a GGUF file, PACKAGE:FILE) to the folder `out`; its
    figures: model_type, parameters, vocab_size, context, architecture, and the notes of a GGUF file.

    `context` bounds the tokens it reads, where the checkpoint allows more than are wanted. `blocks`: a GGUF file's own
    matrices of 4, 5 or 8 bits stay as they are and are multiplied so; such a model cannot be trained.

    Raises:
        InputError: nothing there, files are missing or damaged, `out` is there already, or the network does what ours
            does not (names it).
    """
    path = Path(given)
    path = path if path.exists() else locate(given)
    file = gguf_in(path)
    if file is None:
        if blocks:
            raise InputError(f"{path}: no GGUF file, whose blocks could be kept; leave --blocks out")
        return import_checkpoint(path, out, context)
    if out.exists():
        raise InputError(f"{out}: exists already; name another folder, or remove it")
    loaded = read_gguf(file, context, blocks)
    FORMATS["native"].write(loaded, out)
    return {
        "model": str(out),
        "parameters": sum(parameter.numel() for parameter in with_room(loaded.config).parameters()),
        "vocab_size": loaded.tokenizer.vocab_size,
        "context": loaded.context,
        "architecture": loaded.config.to_json(),
        **loaded.notes,
    }
