"""An adapter of ours → PEFT's format, and the model that it belongs to as `transformers` reads it.

    adapter_config.json, adapter_model.safetensors      A (rank, in) and B (out, rank) of each matrix, by its name there
    base/                                               the base, exported; or a folder given as `base`

Where ours is one matrix and theirs are several (queries, keys and values), each of theirs gets A and its own rows of B.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.export import EXPORTERS, Exporter, final_place
from lmforge.formats.export_tensors import LazyTensor, write_shard
from lmforge.formats.export_tokenizer import write_tokenizer
from lmforge.formats.export_transformers import Running, Standard, TransformersExport, config_json, quiet
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.plain import plain
from lmforge.formats.registry import FORMATS

BASE, CONFIG, TENSORS = "base", "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class AdapterParts:
    """A saved adapter: the folder of its base, `NAME.adapter_a` (rank, in) and `NAME.adapter_b` (out, rank) of each
    matrix NAME, and what their product is multiplied by."""

    base: Path
    tensors: Mapping[str, Tensor]
    scale: float


class _AdapterFormat(Protocol):
    def parts(self, path: Path) -> AdapterParts:
        """A saved adapter by itself."""


class Peft(Exporter):
    """`--to peft`."""

    name = "peft"
    packages = ("transformers", "peft")

    def write(self, loaded: LoadedModel, path: Path, base: Path | None = None, **options: Any) -> dict[str, Any]:
        """A folder with the adapter and, unless `base` is the folder of an exported one, its base."""
        if not FORMATS["adapter"].detect(loaded.directory):
            raise InputError(f"{loaded.directory}: no adapter, so there is nothing to write; use --to transformers")
        parts = cast(_AdapterFormat, FORMATS["adapter"]).parts(loaded.directory)
        whole, _ = plain(FORMATS["native"].read(parts.base))
        path.mkdir()
        report: dict[str, Any] = {}
        if base is None:
            exporter = TransformersExport()
            report = {f"base_{key}": value for key, value in exporter.write(whole, path / BASE).items()}
            exporter.check(whole, path / BASE)
        _, how = config_json(whole)
        tensors = dict(_tensors(parts, how, loaded))
        rank = max(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str((base or final_place(path) / BASE).resolve()),
            "r": rank,
            "lora_alpha": parts.scale * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({_within_layer(name, how) for name in tensors}),
            "fan_in_fan_out": isinstance(how, Standard) and any(row.transposed for row in how.family.layer_rows),
            "inference_mode": True,
        }
        (path / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        write_shard(path / TENSORS, {PREFIX + name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
        write_tokenizer(loaded, path)
        return {
            **report,
            "rank": rank,
            "targets": settings["target_modules"],
            "base": settings["base_model_name_or_path"],
        }

    def open(self, path: Path, loaded: LoadedModel) -> Running:
        """In transformers, with the adapter that peft puts in."""
        given = Path(json.loads((path / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
        return _Adapted(path / BASE if (path / BASE).is_dir() else given, path)


class _Adapted(Running):
    """A model in transformers with an adapter in peft."""

    def __init__(self, base: Path, adapter: Path) -> None:
        import peft

        super().__init__(base)
        with quiet():
            self.model = peft.PeftModel.from_pretrained(self.model, str(adapter)).eval()


def _tensors(parts: AdapterParts, how: Standard | str, loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """`MODULE.lora_A.weight` and `MODULE.lora_B.weight` of each matrix, by its module's name in the exported base."""
    for name in [name.removesuffix(".adapter_a") for name in parts.tensors if name.endswith(".adapter_a")]:
        a, b = parts.tensors[f"{name}.adapter_a"], parts.tensors[f"{name}.adapter_b"]
        for theirs, rows in _rows(name, b, how):
            yield f"{theirs}.lora_A.weight", a
            yield f"{theirs}.lora_B.weight", rows


def _rows(name: str, b: Tensor, how: Standard | str) -> Sequence[tuple[str, Tensor]]:
    """B (out, rank) of one matrix of ours → that of each of theirs."""
    if isinstance(how, str):
        return [(name, b)]
    (place,) = how.family.places(how.config, [f"{name}.weight"])
    turned = dataclasses.replace(place, transposed=False)  # rows of B are outputs, however the matrix lies
    return [(theirs.removesuffix(".weight"), rows) for theirs, rows in turned.split(b.to(torch.float32))]


def _within_layer(name: str, how: Standard | str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj.lora_A.weight`."""
    module = name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
    before = (how.family.layer if isinstance(how, Standard) else "blocks.{}.").split("{}")[0]
    return module.removeprefix(before).partition(".")[2]


EXPORTERS.register(Peft.name, Peft())
