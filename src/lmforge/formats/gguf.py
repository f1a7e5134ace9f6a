"""GGUF files → models of ours: network, tokenizer, chat template, licence and source, from the one file.

    head ─▶ settings and names of a checkpoint (gguf_names) ─▶ our network (formats.transformers), a tensor at a time
       └──▶ tokenizer.json (tokens.ggml)

A file may hold the output matrix although the model's is its embedding: a copy in another precision, since llama.cpp
keeps the output finer. Where the two are one matrix but for rounding, the finer is taken for both, and the notes say
so.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.families import family_of
from lmforge.formats.gguf_blocks import keep_blocks
from lmforge.formats.gguf_file import GgufFile, is_gguf, string_of
from lmforge.formats.gguf_names import ROPE_TENSORS, checkpoint_name, laid_out, settings_of
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.registry import FORMATS, Format
from lmforge.formats.transformers import fill
from lmforge.model.config import GPTConfig
from lmforge.model.room import with_room
from lmforge.tokens.ggml import tokenizer_from
from lmforge.tokens.tokenizer import Tokenizer

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
COMPARED_ROWS = 256
SAME = 0.35  # of the embedding's norm that rounding to a few bits may change; matrices of their own differ by their sum


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder."""
    if is_gguf(path):
        return path
    if not path.is_dir():
        return None
    inside = sorted(path.glob("*.gguf"))
    return inside[0] if len(inside) == 1 else None


def read_gguf(path: Path, context: int | None = None, blocks: bool = False) -> LoadedModel:
    """The model in a GGUF file. `context`: the most tokens that it is to read, where the file allows more. `blocks`:
    matrices of 4, 5 or 8 bits stay as they are and are multiplied so (`gguf_blocks`); else all become floats.

    Raises:
        InputError: it is damaged, of an architecture or a kind of vocabulary that is not known, tensors are missing or
            hold what is no number, or vocabulary and embedding are of different size.
    """
    file = GgufFile(path)
    settings, finer = _settings(file)
    tokenizer = Tokenizer(tokenizer_from(file.metadata, str(path)), str(path))
    rows = file.tensors[EMBEDDING].shape[0]
    if rows < tokenizer.vocab_size:
        raise InputError(
            f"{path}: {EMBEDDING} has {rows} rows for the {tokenizer.vocab_size} tokens of its vocabulary; they do not "
            "belong together: convert the model again"
        )
    notes = notes_of(file)
    if finer:
        coarser = EMBEDDING if finer == OUTPUT else OUTPUT
        kept, left = f"{finer} ({file.tensors[finer].type})", f"{coarser} ({file.tensors[coarser].type})"
        notes["tied"] = f"{kept} is embedding and output; {left}, the same matrix in another precision, is left out"
    family = family_of(settings)
    model = with_room(config_of(file, context))
    weights = CheckpointTensors(file, settings, finer)
    fill(model, family, weights)
    entry = None
    if blocks:
        model, entry = keep_blocks(model, file, settings, family, weights, weights.inside)
    compression = () if entry is None else (entry,)
    return LoadedModel(model.eval(), tokenizer, path.stem, path, compression, notes=notes)


def _settings(file: GgufFile) -> tuple[dict[str, Any], str | None]:
    """(the file's config.json; which of embedding and output is kept for both, see `_finer_copy`)."""
    settings, finer = settings_of(file), _finer_copy(file)
    return ({**settings, "tie_word_embeddings": True} if finer else settings), finer


def config_of(file: GgufFile, context: int | None = None) -> GPTConfig:
    """The shape of the network in a file, without its weights.

    Raises:
        InputError: of an architecture that is not known, or of one that does what ours does not.
    """
    vocabulary = file.metadata.get("tokenizer.ggml.tokens") or ()
    settings, _ = _settings(file)
    try:
        return family_of(settings).shape(settings, len(vocabulary) or settings["vocab_size"], context)
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith("--") else f"{file.path}: {said}") from error


def notes_of(file: GgufFile) -> dict[str, Any]:
    """Where the model is from and what it may be used for, as the file says; the types of its tensors."""
    said = file.metadata
    notes: dict[str, Any] = {
        "imported_from": file.path.name,
        "model_type": file.architecture,
        "quantised": dict(Counter(info.type for info in file.tensors.values()).most_common()),
    }
    author = string_of(said, "general.organization") or string_of(said, "general.author")
    urls = (string_of(said, f"general.{key}") for key in ("source.url", "source.repo_url", "url", "repo_url"))
    stated = {
        "license": string_of(said, "general.license"),
        "source": ", ".join(
            part for part in (author, string_of(said, "general.name"), next(filter(None, urls), "")) if part
        ),
    }
    return notes | {key: value for key, value in stated.items() if value}


def _finer_copy(file: GgufFile) -> str | None:
    """Which of embedding and output matrix is kept, where both are one matrix in different precision; None where they
    are matrices of their own, or there is only one."""
    if not {EMBEDDING, OUTPUT} <= file.tensors.keys():
        return None
    embedding, output = file.tensors[EMBEDDING], file.tensors[OUTPUT]
    if embedding.shape != output.shape:
        return None
    first = max(0, (embedding.shape[0] - COMPARED_ROWS) // 2)
    here, there = (file.tensor(name, first, COMPARED_ROWS) for name in (EMBEDDING, OUTPUT))
    if float((here - there).norm()) > SAME * float(here.norm()):
        return None
    sizes = {name: file.tensors[name].size for name in (OUTPUT, EMBEDDING)}
    return max(sizes, key=lambda name: sizes[name])


class CheckpointTensors:
    """The tensors of a file under the names of a checkpoint, each dequantised when it is read."""

    def __init__(self, file: GgufFile, settings: dict[str, Any], finer: str | None) -> None:
        """`finer`: which of embedding and output is both (`_finer_copy`)."""
        self.source, self._file, self._settings = file.path, file, settings
        self.inside: dict[str, str] = {}  # names of a checkpoint → of the file
        for name in file.tensors:
            if name not in ROPE_TENSORS and not (finer is not None and name in (EMBEDDING, OUTPUT)):
                self.inside[checkpoint_name(file.architecture, name) or name] = name
        if finer is not None:
            self.inside[checkpoint_name(file.architecture, EMBEDDING) or EMBEDDING] = finer

    @property
    def names(self) -> frozenset[str]:
        """Of all tensors."""
        return frozenset(self.inside)

    def read(self, name: str) -> Tensor:
        """One of them."""
        inside = self.inside[name]
        return laid_out(self._file.architecture, self._settings, inside)(self._file.tensor(inside))


class Gguf(Format):
    """A GGUF file, or a folder with one."""

    name = "gguf"

    def detect(self, path: Path) -> bool:
        """By its name or its first bytes; a folder by the one file in it."""
        return gguf_in(path) is not None

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """As `read_gguf`; there are no checksums to verify."""
        file = gguf_in(path)
        if file is None:
            raise InputError(f"{path}: no GGUF file there")
        return read_gguf(file)


FORMATS.register(Gguf.name, Gguf())
