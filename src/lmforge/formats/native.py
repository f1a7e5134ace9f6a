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
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import hash_file, verify_directory, write_atomic

TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
Restore = Callable[[GPT, Mapping[str, Any], dict[str, Tensor]], GPT]


def model_tensors(model: GPT) -> dict[str, Tensor]:
    """The state of a model, each tensor once (the output head is the embedding)."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    if model.embed is not None and model.head is not None and getattr(model.head, "weight", None) is model.embed.weight:
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
    """Write the three files into `directory` (which the caller makes complete with a manifest)."""
    save_file(dict(tensors), directory / TENSORS)
    shutil.copyfile(tokenizer, directory / TOKENIZER)
    content = {
        "format": 1,
        "architecture": config.to_json(),
        "compression": list(compression),
        "tokenizer_sha256": hash_file(tokenizer),
        "notes": dict(notes or {}),
    }
    write_atomic(directory / CONFIG, json.dumps(content, indent=1) + "\n")


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

    `restore(model, entry, tensors)` replaces modules for one entry of `compression`; `lmforge.compress.chain.load`
    passes it.

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
    model = GPT(config["architecture"])
    for entry in config["compression"]:
        if restore is None:
            raise InputError(
                f"{directory}: a compressed model ({entry.get('method')}); load it with lmforge.compress.chain.load"
            )
        model = restore(model, entry, tensors)
    tied = {"head.weight"} if "head.weight" not in tensors else set()
    missing, extra = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if name not in tied]
    if missing or extra:
        raise InputError(
            f"{directory / TENSORS}: tensors do not fit {CONFIG}: missing {missing[:5]}, unexpected {extra[:5]}"
        )
    return model.eval()
