"""A folder that we exported to `transformers` → the model that it was made from, with the same weights.

config.json keeps the shape of the network under "lmforge". Tensors stand where its family has them, or under our own
names; biases of zeros that were added for a family are left out again. What somebody trained on since is read as any
other checkpoint: biases that are no longer zero make another network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.export_transformers import KIND, Standard, standard, texts_state, zeros
from lmforge.formats.families_rows import Place
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG, TOKENIZER
from lmforge.formats.registry import FORMATS, Format
from lmforge.formats.transformers import OWN, read_checkpoint, read_json
from lmforge.formats.weight_files import WeightFiles
from lmforge.model.config import GPTConfig
from lmforge.model.room import with_room
from lmforge.record import hash_file
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import import_tokenizer


class Exported(Format):
    """What `--to transformers` wrote."""

    name = "exported"

    def detect(self, path: Path) -> bool:
        """A folder with a config.json that has our shape of the network beside theirs."""
        try:
            settings = read_json(path / CONFIG)
        except InputError:
            return False
        return "model_type" in settings and isinstance(settings.get(OWN), Mapping)

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """The model that was exported; there are no checksums to verify.

        Raises:
            InputError: files are missing or damaged, or tensors do not fit.
        """
        settings = read_json(path / CONFIG)
        kept = settings[OWN]
        try:
            config = GPTConfig(**{**kept["architecture"], "ahead": 0})
        except (KeyError, TypeError) as error:
            raise InputError(f"{path / CONFIG}: {OWN}: not a network this version reads ({error})") from error
        how = None
        if settings["model_type"] != KIND:
            written = standard(config, first=settings["model_type"])
            if isinstance(written, str) or written.family.model_type != settings["model_type"]:
                return read_checkpoint(path)
            how = written
        model = with_room(config)
        there = model.state_dict()
        state = {name: there[name] for name, _ in texts_state(config)}
        files = WeightFiles(path)
        for place in _places(how, state):
            if place.ours in state:
                place.fill(state[place.ours], lambda name: _read(files, name))
            elif any(bool(_read(files, name).any()) for name in place.theirs):
                return read_checkpoint(path)
        added = {} if how is None else zeros(how, next(iter(state.values())).dtype)
        if any(bool(_read(files, name).any()) for name in added):
            raise InputError(
                f"{path}: biases of norms of queries and keys are no longer zero, and ours have none; give the "
                "model as it was exported"
            )
        tokenizer = _tokenizer(path, kept.get("tokenizer_sha256"))
        notes = dict(kept.get("notes") or {})
        return LoadedModel(model.eval(), tokenizer, path.resolve().name, path, notes=notes)


def _places(how: Standard | None, state: Mapping[str, Any]) -> Iterator[Place]:
    """Where our tensors stand, and those that the family's network has beside them."""
    if how is None:
        yield from (Place(name, (name,), None, None, False, 0) for name in state)
    else:
        yield from how.family.places(how.config, (name for name, _ in texts_state(how.config)))


def _read(files: WeightFiles, name: str) -> Tensor:
    if name not in files.names:
        raise InputError(f"{files.source}: no tensor {name}; export the model again")
    return files.read(name)


def _tokenizer(path: Path, sha256: str | None) -> Tokenizer:
    """The tokenizer as it was, where its file says all of it; else as that of any checkpoint."""
    file = path / TOKENIZER
    if file.is_file() and hash_file(file) == sha256:
        return Tokenizer.load(file)
    return Tokenizer(import_tokenizer(path), str(file))


FORMATS.register(Exported.name, Exported())
