"""A model of ours → a GGUF file that llama.cpp runs: network, tokenizer, chat template, licence, in one file.

    some architecture computes the same ─▶ config.json of its family ─▶ metadata          (gguf_keys)
    our tensors ─Place.split─▶ those of a checkpoint ─gguf_names─▶ blocks of a type, one tensor at a time

What was written is read back: its tensors are compared with ours, bit for bit where they were not rounded, and where
llama.cpp is installed (`pip install xllamacpp`) it runs the file: 32 greedy tokens and the probabilities beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.export import EXPORTERS, Exporter, Product, Stepwise, compare
from lmforge.formats.export_tokenizer import chat_template
from lmforge.formats.families import FAMILIES, Family
from lmforge.formats.gguf import read_gguf
from lmforge.formats.gguf_file import gguf_package
from lmforge.formats.gguf_keys import metadata_of
from lmforge.formats.gguf_names import ARCHITECTURES, gguf_name, laid_out
from lmforge.formats.llama_cpp import compare_with_llama_cpp, is_installed
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import model_tensors
from lmforge.model.config import GPTConfig
from lmforge.tokens.ggml_write import vocabulary_of

TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # general.file_type
BLOCK = 32
# what a recipe says for the architecture llama, which llama.cpp runs best
LLAMA = {
    "activation": "swiglu",
    "norm": "rmsnorm",
    "positions": "rope",
    "biases": False,
    "qk_norm": False,
    "ngram_rows": 0,
    "attention": ("full",),
    "residual": "plain",
    "experts": 0,
    "image_size": 0,
}


class Gguf(Exporter):
    """GGUF files. Option `type`: what matrices are written as."""

    name = "gguf"
    packages = ("gguf",)
    extra = "gguf"

    def write(self, loaded: LoadedModel, path: Path, type: str = "F32", **options: Any) -> dict[str, Any]:
        """Write the file.

        Raises:
            InputError: an unknown type, or a network that llama.cpp does not run (names the keys that make it one).
        """
        if type not in TYPES:
            raise InputError(f"--type {type}: give one of {', '.join(TYPES)}")
        architecture, family, settings = architecture_for(loaded.config)
        vocabulary = vocabulary_of(loaded.tokenizer, chat_template(loaded.tokenizer))
        writer = gguf_package().GGUFWriter(path, architecture)
        try:
            said = {
                **_origin(loaded),
                **metadata_of(architecture, settings, loaded.config),
                **vocabulary.metadata,
                "general.file_type": FILE_TYPES[type],
                "general.quantization_version": 2,
            }
            for key, value in said.items():
                _add(writer, key, value)
            _write_tensors(writer, loaded, architecture, family, settings, type)
        finally:
            writer.close()
        report = {"architecture": architecture, "type": type}
        if not vocabulary.exact:
            pre = vocabulary.metadata["tokenizer.ggml.pre"]
            report["tokenizer"] = (
                f"llama.cpp cuts texts in no way that is this tokenizer's; {pre} is the nearest, and some texts get "
                "other tokens there: give it token ids, or the file to lmforge, for the same ones"
            )
        return report

    def open(self, path: Path, loaded: LoadedModel) -> Product:
        """The file, read back into a network of ours."""
        return _ReadBack(read_gguf(path))

    def check(self, loaded: LoadedModel, path: Path, type: str = "F32", **options: Any) -> dict[str, Any]:
        """Compare tensors, tokenizer, logits and greedy tokens of the file with ours, and with llama.cpp's.

        Raises:
            LmforgeError: they differ by more than the rounding of `type` explains.
        """
        back = read_gguf(path)
        if back.tokenizer.sha256 != loaded.tokenizer.sha256:
            raise LmforgeError(f"{path.name}: its tokenizer is not the one that was written; nothing was written")
        worst = largest_change(loaded, back)
        if type == "F32":
            if worst:
                raise LmforgeError(f"{path.name}: {worst[0]} was changed by {worst[1]:.2g}; nothing was written")
            report = compare(loaded, _ReadBack(back), self.tolerance)
        else:
            report = {"logits_changed_by_rounding": rounding(loaded, back)}
        if is_installed():
            report |= compare_with_llama_cpp(back, path, None if type in ("F32", "F16") else 1.0)
        else:
            report["llama.cpp"] = "not installed (pip install xllamacpp): the file was read back by lmforge alone"
        return report


class _ReadBack(Stepwise):
    """A file as a network of ours."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    @torch.inference_mode()
    def logits(self, tokens: Any) -> Tensor:
        """As `Product.logits`."""
        result: Tensor = self.loaded.model(torch.tensor([list(tokens)]))[0]
        return result


def architecture_for(config: GPTConfig) -> tuple[str, Family, dict[str, Any]]:
    """The architecture of llama.cpp that computes exactly the same, its family, and that family's config.json.

    Raises:
        InputError: there is none; names the keys of the recipe, and what they have to be.
    """
    own = dataclasses.replace(config, ahead=0)
    for architecture, (model_type, _, _) in ARCHITECTURES.items():
        family = FAMILIES[model_type]
        try:
            settings = family.settings(own)
        except InputError:
            continue
        return architecture, family, settings
    wrong = {key: value for key, value in LLAMA.items() if getattr(config, key) != value}
    if config.layer_shapes:
        raise InputError("llama.cpp runs no network whose layers differ in width; export it to transformers or onnx")
    if not wrong:
        raise InputError("llama.cpp runs no such network (lmforge inspect shows it); export it to transformers or onnx")
    said = ", ".join(f"model.{key} = {_toml(getattr(config, key))}" for key in wrong)
    wanted = ", ".join(f"{key} = {_toml(value)}" for key, value in wrong.items())
    raise InputError(
        f"llama.cpp runs no network with {said}; train one with [model] {wanted}, or export this one to transformers "
        "or onnx"
    )


def _toml(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def _origin(loaded: LoadedModel) -> dict[str, Any]:
    stated = {"general.license": loaded.notes.get("license"), "general.source.url": loaded.notes.get("source")}
    kept = {key: str(value) for key, value in stated.items() if value}
    return {"general.type": "model", "general.name": loaded.name, **kept}


def _add(writer: Any, key: str, value: Any) -> None:
    """One key of the metadata, in the type that llama.cpp expects."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _parts(
    loaded: LoadedModel, architecture: str, family: Family, settings: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file by name, one at a time."""
    own = {name: tensor for name, tensor in model_tensors(loaded.model).items() if not name.startswith("ahead.")}
    for place in family.places(dataclasses.replace(loaded.config, ahead=0), own):
        for name, tensor in place.split(own[place.ours]):
            inside = gguf_name(architecture, name)
            yield inside, laid_out(architecture, settings, inside, back=True)(tensor.float())
    divisors = loaded.config.rope_scaling == "llama3"
    if divisors:
        yield "rope_freqs.weight", llama3_divisors(loaded.config)


def llama3_divisors(config: GPTConfig) -> Tensor:
    """What Llama 3's scaling slows each pair of channels by (Grattafiori et al. 2024): (R/2,)."""
    half = config.rotary_width // 2
    waves = 2 * torch.pi * config.rope_base ** (torch.arange(half).double() / half)
    trained, low, high = config.rope_trained, config.rope_low, config.rope_high
    blend = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - blend) / config.rope_factor + blend)).float()


def _write_tensors(
    writer: Any, loaded: LoadedModel, architecture: str, family: Family, settings: Mapping[str, Any], type: str
) -> None:
    """First where each will lie, then their blocks: no more than one is in memory."""
    gguf = gguf_package()
    chosen: dict[str, str] = {}
    for name, tensor in _parts(loaded, architecture, family, settings):
        chosen[name] = _type_of(name, tensor, type)
        kind = gguf.GGMLQuantizationType[chosen[name]]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = list(tensor.shape)
        count = tensor.numel() // block * size
        if block > 1:
            writer.add_tensor_info(name, [*shape[:-1], shape[-1] // block * size], np.dtype(np.uint8), count, kind)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float16 if size == 2 else np.float32), count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _parts(loaded, architecture, family, settings):
        kind = gguf.GGMLQuantizationType[chosen[name]]
        values: NDArray[np.float32] = tensor.contiguous().numpy()
        writer.write_tensor_data(values if chosen[name] == "F32" else gguf.quants.quantize(values, kind))


def _type_of(name: str, tensor: Tensor, type: str) -> str:
    """What a tensor is written as: vectors and positions in full, embedding and output at least in 8 bits."""
    if tensor.ndim < 2 or name.startswith("position_embd") or type == "F32":
        return "F32"
    if type == "F16" or tensor.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else type


def largest_change(loaded: LoadedModel, back: LoadedModel) -> tuple[str, float] | None:
    """The tensor that differs most between two models of one shape, and by how much; None where all are equal."""
    own, theirs = (model_tensors(each.model) for each in (loaded, back))
    changes = {
        name: float((own[name].float() - theirs[name]).abs().max())
        for name in theirs
        if not torch.equal(own[name].float(), theirs[name])
    }
    return max(changes.items(), key=lambda item: item[1]) if changes else None


@torch.inference_mode()
def rounding(loaded: LoadedModel, back: LoadedModel) -> float:
    """How far rounded weights move the logits of some tokens, as a share of their size."""
    step = max(1, loaded.tokenizer.vocab_size // 32)
    tokens = torch.tensor([list(range(0, loaded.tokenizer.vocab_size, step))[: min(32, loaded.context)]])
    own, theirs = (each.model(tokens).float() for each in (loaded, back))
    return round(float((own - theirs).norm() / own.norm()), 6)


EXPORTERS.register(Gguf.name, Gguf())
