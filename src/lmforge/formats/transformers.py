"""A checkpoint of `transformers` → a model of ours: config.json, weights and tokenizer.json → the folder of
`lmforge.formats.native`. What each family calls things stands in its table: `families_llama`, `families_gpt`.

Weights are read one tensor at a time into a network that has room for them and nothing else, so importing needs no more
memory than the network and one tensor. Tokens keep their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.families import Family, family_of
from lmforge.formats.families_rows import Place
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG, TOKENIZER
from lmforge.formats.registry import FORMATS, Format
from lmforge.formats.weight_files import WeightFiles, Weights
from lmforge.model.gpt import GPT
from lmforge.model.room import with_room
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import import_tokenizer

OWN = "lmforge"  # the key of config.json under which our exports keep the shape of their network


def import_model(source: Path, out: Path, context: int | None = None) -> dict[str, Any]:
    """Write the model that the checkpoint in `source` is to the folder `out`; its figures: architecture, parameters,
    vocab_size, context.

    `context` bounds the tokens it reads, where the checkpoint allows more than are wanted (RoPE's alone: learned
    positions are as many as they are). Rows of the embedding beyond the tokenizer's tokens, which only pad it, are left
    out.

    Raises:
        InputError: files are missing or damaged, `out` is there already, or the network does what ours does not (names
            it).
    """
    if out.exists():
        raise InputError(f"{out}: exists already; name another folder, or remove it")
    again = context is None and FORMATS["exported"].detect(source)
    loaded = FORMATS["exported"].read(source) if again else read_checkpoint(source, context)
    FORMATS["native"].write(loaded, out)
    return {
        "model": str(out),
        "model_type": loaded.notes.get("model_type", "lmforge"),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "vocab_size": loaded.tokenizer.vocab_size,
        "context": loaded.context,
        "architecture": loaded.config.to_json(),
    }


def read_checkpoint(source: Path, context: int | None = None) -> LoadedModel:
    """The model that the checkpoint in `source` is, in float32; `context` and errors as in `import_model`."""
    settings = read_json(source / CONFIG)
    try:
        family = family_of(settings)
        tokenizer = Tokenizer(import_tokenizer(source), str(source / TOKENIZER))
        config = family.shape(settings, tokenizer.vocab_size, context)
    except InputError as error:
        said = str(error).removeprefix(f"{CONFIG}: ")
        about = said != str(error) or said.startswith("model.")
        raise InputError(f"{source / CONFIG}: {said}" if about else said) from error
    model = with_room(config)
    fill(model, family, WeightFiles(source))
    notes = {"imported_from": source.name, "model_type": settings["model_type"]}
    return LoadedModel(model.eval(), tokenizer, source.resolve().name, source, notes=notes)


def fill(model: GPT, family: Family, files: Weights) -> None:
    """Read every weight of a network from the files of its family, one tensor at a time.

    Raises:
        InputError: a tensor is missing, is not finite, does not fit, or has no place in ours (names it).
    """
    state = own_tensors(model)
    places = list(family.places(model.config, state))
    name_of = naming(family, files, places)
    left = set(files.names)

    def take(name: str) -> Tensor:
        named = name_of(name)
        if named not in files.names:
            raise InputError(f"{files.source}: no tensor {named}; is the checkpoint complete?")
        left.discard(named)
        return _finite(files.read(named), named, files.source)

    for place in places:
        try:
            place.fill(state[place.ours], take)
        except InputError as error:
            said = str(error)
            raise InputError(said if said.startswith(str(files.source)) else f"{files.source}: {said}") from error
    tied = family.row("head") if model.config.tied else ()
    known = [*family.ignored, *(f"^{re.escape(name)}\\.weight$" for name in tied)]
    rest = sorted(name for name in left if not any(re.search(expression, name) for expression in known))
    if rest:
        raise InputError(f"{files.source}: tensors that this architecture does not have: {', '.join(rest[:5])}")


def naming(family: Family, files: Weights, places: Sequence[Place]) -> Callable[[str], str]:
    """What these files call a tensor that the family calls so."""
    prefix, usual = _prefix(family, files, next(iter(places[0].theirs))), family.prefixes[0]
    return lambda name: prefix + name.removeprefix(usual) if name.startswith(usual) else name


def own_tensors(model: GPT) -> dict[str, Tensor]:
    """The tensors of a network by name, each once: the embedding stands for a head that is tied to it."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _prefix(family: Family, files: Weights, embedding: str) -> str:
    """What the names in these files have in the place of the usual first part."""
    usual = family.prefixes[0]
    rest = embedding.removeprefix(usual)
    return next((prefix for prefix in family.prefixes if prefix + rest in files.names), usual)


def _finite(tensor: Tensor, name: str, source: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise InputError(f"{source}: {name} holds {tensor.dtype}, not numbers of a network; give the unquantised one")
    low, high = tensor.aminmax() if tensor.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise InputError(f"{source}: {name} has weights that are no numbers (NaN or infinite); get the file again")
    return tensor


class Transformers(Format):
    """A folder that `save_pretrained` of `transformers` wrote."""

    name = "transformers"

    def detect(self, path: Path) -> bool:
        """A folder with a config.json that has a `model_type`, and was not written by us (`formats.exported`)."""
        try:
            settings = read_json(path / CONFIG)
            return "model_type" in settings and OWN not in settings
        except InputError:
            return False

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """As `read_checkpoint`; there are no checksums to verify."""
        return read_checkpoint(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that is an object.

    Raises:
        InputError: it is missing or is not.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: missing; give the folder of a checkpoint with config.json, tokenizer.json and safetensors"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); save the checkpoint with transformers again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; save the checkpoint with transformers again")
    return content


FORMATS.register(Transformers.name, Transformers())
