"""A model on disk: `model.safetensors`, `config.json`, `tokenizer.json`, `manifest.json`. Loadable on its own; no
pickle.

`config.json` holds `architecture` (a GPTConfig), `compression` (what was done to the modules, in order) and
`tokenizer_sha256`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.registry import FORMATS, RESTORERS, Format
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.room import with_room
from lmforge.record import atomic_directory, content_hash, hash_file, verify_directory, write_atomic
from lmforge.tokens.bpe import Tokenizer

# of the notes: where a model is from and what it may be used for, kept through training and compression
ORIGIN = ("imported_from", "model_type", "license", "source")
TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
Restore = Callable[[GPT, Mapping[str, Any], dict[str, Tensor]], GPT]


def is_tied(model: GPT) -> bool:
    """Whether the output head's matrix is the embedding's. Modules that compression put there may have none."""
    shared = getattr(model.head, "weight", None)
    return shared is not None and shared is getattr(model.embed, "weight", None)


def model_tensors(model: GPT) -> dict[str, Tensor]:
    """The state of a model, each tensor once (the output head is the embedding)."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    if is_tied(model):
        state.pop("head.weight", None)
    return state


def write_model(
    directory: Path,
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Path,
    *,
    compression: Sequence[Mapping[str, Any]] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the three files into `directory` (which the caller makes complete with a manifest); `tokenizer` may stand
    there already."""
    save_file(dict(tensors), directory / TENSORS)
    if tokenizer != directory / TOKENIZER:
        shutil.copyfile(tokenizer, directory / TOKENIZER)
    content = {
        "format": 1,
        "architecture": config.to_json(),
        "compression": list(compression),
        "tokenizer_sha256": hash_file(tokenizer),
        "notes": dict(notes or {}),
    }
    write_atomic(directory / CONFIG, json.dumps(content, indent=1) + "\n")


def origin_of(notes: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's notes say of its origin."""
    return {key: notes[key] for key in ORIGIN if key in notes}


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a saved model, its architecture as a GPTConfig.

    Raises:
        InputError: no model there, or not one this version reads.
    """
    path = directory / CONFIG
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["architecture"] = GPTConfig(**content["architecture"])
    except FileNotFoundError as error:
        raise InputError(
            f"{directory}: no model here ({CONFIG} is missing); give a run, a checkpoint or a compressed model"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a configuration this version reads ({error}); make the model again") from error
    return content


def load_model(directory: Path, restore: Restore | None = None, verify: bool = True) -> GPT:
    """Build the network of a saved model and fill it; checks every file against the manifest first.

    `restore(model, entry, tensors)` replaces modules for one entry of `compression`; without it a compressed model is
    refused (see `load_network`).

    Raises:
        InputError: a file is missing or altered, or tensors do not fit (names them).
    """
    if verify:
        verify_directory(directory)
    config = read_config(directory)
    try:
        tensors = load_file(directory / TENSORS)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{directory / TENSORS}: not readable as safetensors ({error}); make the model again"
        ) from error
    model = with_room(config["architecture"])
    for entry in config["compression"]:
        if restore is None:
            raise InputError(
                f"{directory}: a compressed model ({entry.get('method')}), where one that is not is needed; give the "
                "model that it was made from"
            )
        if not entry.get("superseded"):  # a later step made the network anew
            model = restore(model, entry, tensors)
    tied = {"head.weight"} if "head.weight" not in tensors else set()
    missing, extra = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if name not in tied]
    if missing or extra:
        raise InputError(
            f"{directory / TENSORS}: tensors do not fit {CONFIG}: missing {missing[:5]}, unexpected {extra[:5]}"
        )
    return model.eval()


def load_network(directory: Path, verify: bool = True) -> GPT:
    """The network of any saved model, plain or compressed, ready to score and to decode.

    Raises:
        InputError: a file is missing, altered, or made by a method that is not known here.
    """

    def restore(model: GPT, entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> GPT:
        method = entry.get("method")
        if not isinstance(method, str) or method not in RESTORERS:
            raise InputError(
                f"{directory / CONFIG}: compression method {method!r} is not known; install what brings it, or run the "
                "compress stage again"
            )
        return RESTORERS[method].restore(model, entry, tensors)

    return load_model(directory, restore, verify)


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a saved model; `config` as `read_config` gives it.

    Raises:
        InputError: it is missing, or not the one that the model was trained with.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        raise InputError(f"{path}: missing; restore it or make the model again")
    if hash_file(path) != config.get("tokenizer_sha256"):
        raise InputError(
            f"{path}: not the tokenizer this model was trained with (its SHA-256 is not that in {CONFIG}); "
            "restore it or make the model again"
        )
    tokenizer = Tokenizer.load(path)
    known = config["architecture"].vocab_size
    if tokenizer.vocab_size > known:
        raise InputError(f"{path}: {tokenizer.vocab_size} tokens, but the model knows {known}; make the model again")
    return tokenizer


def model_name(directory: Path) -> str:
    """laptop/model and laptop/compressed → laptop; laptop/train/checkpoints/step-N → laptop-step-N; else the folder's
    name."""
    if directory.name in ("model", "compressed"):
        return directory.parent.name or directory.name
    if directory.parent.name == "checkpoints" and directory.parent.parent.name == "train":
        return f"{directory.parent.parent.parent.name}-{directory.name}"
    return directory.name


class Native(Format):
    """The folders that lmforge writes: chosen models, checkpoints, compressed models."""

    name = "native"

    def detect(self, path: Path) -> bool:
        """A folder with a config.json that is not of `transformers`; one that is no JSON is ours to complain of."""
        try:
            content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        except OSError:
            return False
        except ValueError:
            return True
        return not (isinstance(content, dict) and "model_type" in content)

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """As `load_network` and `load_tokenizer`."""
        config = read_config(path)
        return LoadedModel(
            tokenizer=load_tokenizer(path, config),
            model=load_network(path, verify),
            name=model_name(path.resolve()),
            directory=path,
            compression=tuple(config["compression"]),
            notes=config.get("notes", {}),
            fingerprint=(content_hash(path) or "")[:12],
        )

    def write(self, loaded: LoadedModel, path: Path) -> None:
        """A complete folder with its manifest, in place of what was there."""
        with atomic_directory(path) as folder:
            loaded.tokenizer.save(folder / TOKENIZER)
            tensors, tokenizer = model_tensors(loaded.model), folder / TOKENIZER
            write_model(folder, loaded.config, tensors, tokenizer, compression=loaded.compression, notes=loaded.notes)


FORMATS.register(Native.name, Native())
