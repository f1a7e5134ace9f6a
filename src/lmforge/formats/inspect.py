"""`lmforge inspect PATH`: what a file or a folder with a model is, by what stands in front of its weights.

    GGUF        the head of the file
    native      config.json, tokenizer.json, the heads of safetensors (what lmforge writes; a run, a checkpoint)
    transformers the same of a checkpoint of theirs

Nothing is read that takes long, and what cannot be imported is described as far as it says, with the reason.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.formats.families import family_of
from lmforge.formats.gguf import config_of, gguf_in, notes_of
from lmforge.formats.gguf_file import GgufFile
from lmforge.formats.load import resolve
from lmforge.formats.native import CONFIG, TOKENIZER, read_config
from lmforge.machine import memory_bytes
from lmforge.model.config import GPTConfig
from lmforge.tokens.ggml import tokenizer_from
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import import_tokenizer

Content = dict[str, Any]
FULL = 4  # bytes of a weight once it is loaded


def inspect(path: Path) -> Content:
    """What is at `path`.

    Keys: path, format, family, name, license, source, shape {field: value}, parameters, tensors {type: {count,
    parameters, bytes}}, file_bytes, tokenizer {kind, tokens, special}, chat_template (whether there is one, and its
    characters), memory_bytes (of its weights once loaded), machine_bytes, fits, importable and, where it is not, why.

    Raises:
        InputError: nothing there, no model, or a damaged file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a model, a run, a checkpoint or a GGUF file")
    file = gguf_in(path)
    if file:
        content = _gguf(file)
    elif _json(path / CONFIG).get("model_type"):
        content = _checkpoint(path)
    else:
        content = _native(resolve(path))
    need = content["parameters"] * FULL if content["format"] != "native" else content["file_bytes"]
    content |= {"memory_bytes": need, "machine_bytes": memory_bytes()}
    return content | {"fits": need < content["machine_bytes"]}


def _gguf(path: Path) -> Content:
    file = GgufFile(path)
    said = file.metadata
    content: Content = {"path": str(path), "format": "gguf"}
    notes = notes_of(file)
    content |= {"family": file.architecture or "not said", "name": said.get("general.name", path.stem)}
    content |= {key: notes.get(key, "not said") for key in ("license", "source")}
    stated = {
        key.removeprefix(f"{file.architecture}."): value
        for key, value in said.items()
        if key.startswith(f"{file.architecture}.")
    }
    content["shape"] = {key: value for key, value in stated.items() if not isinstance(value, list)}
    rows = [(info.type, info.elements, info.size) for info in file.tensors.values()]
    content |= {"tensors": by_type(rows), "parameters": sum(count for _, count, _ in rows)}
    content["file_bytes"] = path.stat().st_size
    tokens = said.get("tokenizer.ggml.tokens") or ()
    kind = {"gpt2": "byte-level BPE", "llama": "SentencePiece BPE"}.get(
        str(said.get("tokenizer.ggml.model")), str(said.get("tokenizer.ggml.model"))
    )
    pre = said.get("tokenizer.ggml.pre")
    content["tokenizer"] = {"kind": f"{kind}, cut as {pre}" if pre else kind, "tokens": len(tokens)}
    content |= _template(said.get("tokenizer.chat_template"))

    def build() -> GPTConfig:
        config = config_of(file)
        content["tokenizer"]["special"] = len(Tokenizer(tokenizer_from(said, str(path)), str(path)).special)
        return config

    return content | _importable(build)


def _checkpoint(path: Path) -> Content:
    settings = _json(path / CONFIG)
    rows = [row for file in sorted(path.glob("*.safetensors")) for row in _safetensors(file)]
    pickles = [*path.glob("*.bin")]
    content: Content = {
        "path": str(path),
        "format": "transformers",
        "family": settings["model_type"],
        "name": path.resolve().name,
        "license": _license(path),
        "source": settings.get("_name_or_path") or "not said",
        "shape": {key: value for key, value in settings.items() if isinstance(value, int | float | str | bool)},
        "tensors": by_type(rows),
        "parameters": sum(count for _, count, _ in rows),
        "file_bytes": sum(file.stat().st_size for file in (*path.glob("*.safetensors"), *pickles)),
    }
    if not rows and pickles:
        content["parameters"] = content["file_bytes"] // FULL
    text = _text(path / "chat_template.jinja") or _json(path / "tokenizer_config.json").get("chat_template")
    content |= _template(text) | _tokenizer(path / TOKENIZER)

    def build() -> GPTConfig:
        tokenizer = Tokenizer(import_tokenizer(path), str(path / TOKENIZER))
        return family_of(settings).shape(settings, tokenizer.vocab_size)

    return content | _importable(build)


def _native(path: Path) -> Content:
    config = read_config(path)
    shape: GPTConfig = config["architecture"]
    notes = config.get("notes", {})
    rows = [row for file in sorted(path.glob("*.safetensors")) for row in _safetensors(file)]
    content: Content = {
        "path": str(path),
        "format": "native",
        "family": notes.get("model_type", "lmforge"),
        "name": path.resolve().name,
        "license": notes.get("license", "not said"),
        "source": notes.get("source") or notes.get("imported_from") or "made here",
        "shape": shape.to_json(),
        "compression": [str(entry.get("method")) for entry in config["compression"]],
        "tensors": by_type(rows),
        "parameters": sum(count for _, count, _ in rows),
        "file_bytes": sum(size for _, _, size in rows),
        "importable": True,
    }
    tokenizer = Tokenizer.load(path / TOKENIZER)
    return content | _template(tokenizer.chat_template) | _tokenizer(path / TOKENIZER)


def by_type(rows: Iterable[tuple[str, int, int]]) -> dict[str, dict[str, Any]]:
    """(type, parameters, bytes) of each tensor → by type: tensors, parameters, bytes and bits a weight; what takes
    most bytes first."""
    table: dict[str, dict[str, Any]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
    for kind, count, size in rows:
        entry = table[kind]
        entry["tensors"] += 1
        entry["parameters"] += count
        entry["bytes"] += size
    ordered = sorted(table.items(), key=lambda item: -item[1]["bytes"])
    return {kind: {**row, "bits": round(8 * row["bytes"] / max(1, row["parameters"]), 2)} for kind, row in ordered}


def _importable(build: Any) -> Content:
    try:
        build()
    except InputError as error:
        return {"importable": False, "why": str(error).splitlines()[0]}
    return {"importable": True}


def _tokenizer(path: Path) -> Content:
    file = _json(path)
    if not file:
        return {"tokenizer": {"kind": "none", "tokens": 0}}
    model = file.get("model") or {}
    added = file.get("added_tokens") or ()
    ids = {*(int(token["id"]) for token in added), *range(len(model.get("vocab") or ()))}
    kinds = json.dumps([file.get("pre_tokenizer"), file.get("decoder")])
    kind = f"byte-level {model.get('type')}" if "ByteLevel" in kinds else str(model.get("type"))
    special = sum(bool(token.get("special")) for token in added)
    return {"tokenizer": {"kind": kind, "tokens": len(ids), "special": special}}


def _template(text: Any) -> Content:
    return {"chat_template": f"{len(text)} characters" if isinstance(text, str) and text else "none"}


def _license(folder: Path) -> str:
    """The licence that a README.md with the Hub's front matter names."""
    stated = re.search(r"^license:\s*(\S+)\s*$", _text(folder / "README.md") or "", re.MULTILINE)
    return stated[1] if stated else "not said"


def _safetensors(path: Path) -> list[tuple[str, int, int]]:
    """(type, parameters, bytes) of each tensor of a file, from its head.

    Raises:
        InputError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head: Mapping[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
        rows = []
        for name, entry in head.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                count = 1
                for size in entry["shape"]:
                    count *= size
                rows.append((entry["dtype"], count, end - begin))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error!r}); get the file again") from error
    return rows


def _json(path: Path) -> Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
