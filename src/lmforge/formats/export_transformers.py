"""A model of ours → a folder that `transformers` loads.

    some family computes the same ─▶ config.json of that family, its tensors          (Llama, Qwen, GPT-2, Arcee, …)
    none does                     ─▶ config.json of our own kind, our tensors, modeling_lmforge.py (trust_remote_code)

Families are the tables of `lmforge.formats.families`, read the other way. A network without biases is also one with
biases that are zero, which some families must have. config.json keeps the shape as we write it under "lmforge", so that
`lmforge.formats.exported` reads the same weights back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.export import EXPORTERS, PROMPT, Exporter
from lmforge.formats.export_tensors import LazyTensor, write_tensors
from lmforge.formats.export_tokenizer import token_ids, write_tokenizer
from lmforge.formats.families import FAMILIES, Family
from lmforge.formats.families_rows import Place
from lmforge.formats.families_ungated import PERSIMMON, PERSIMMON_ZEROS
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG
from lmforge.formats.transformers import OWN
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT

MODELING = "modeling_lmforge.py"
KIND = "lmforge"  # the model_type of networks that no family computes
NOT_COMPUTED = "does not compute"  # how a family's refusal to say a network reads


@dataclasses.dataclass(frozen=True)
class Standard:
    """A network as one of a family: `config` is the shape that the family writes, with biases of zero where ours has
    none."""

    family: Family
    config: GPTConfig
    settings: Mapping[str, Any]


def standard(config: GPTConfig, first: str | None = None) -> Standard | str:
    """The network as one of a published family that computes exactly the same, the family `first` before others; or
    what makes it none, as keys of the recipe."""
    own = dataclasses.replace(config, ahead=0)
    zero_biases: dict[str, Any] = {"biases": True, "qkv_biases": None, "out_biases": None, "norm_biases": None}
    candidates = [own, *([] if own.biases else [dataclasses.replace(own, **zero_biases)])]
    ordered = sorted((*FAMILIES.values(), PERSIMMON), key=lambda family: family.model_type != first)
    reasons = []
    for candidate in candidates:
        for family in ordered:
            try:
                return Standard(family, candidate, family.settings(candidate))
            except InputError as error:
                reasons.append(str(error))
    told = [reason for reason in reasons if NOT_COMPUTED in reason]
    return min(told, key=lambda reason: (reason.count("model."), len(reason)))


def texts_state(config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network that texts go through, each once, without their numbers."""
    with torch.device("meta"):
        network = GPT(dataclasses.replace(config, ahead=0, image_size=0))
    for name, tensor in network.state_dict().items():
        if not (config.tied and name == "head.weight"):
            yield name, tensor


def config_json(loaded: LoadedModel) -> tuple[dict[str, Any], Standard | str]:
    """config.json of the exported model, and how it is exported."""
    if loaded.config.image_size:
        raise InputError(
            f"model.image_size = {loaded.config.image_size}: the export reads text alone; export a network without"
        )
    how = standard(loaded.config, first=loaded.notes.get("model_type"))
    kept = {
        "architecture": loaded.config.to_json(),
        "tokenizer_sha256": loaded.tokenizer.sha256,
        "notes": dict(loaded.notes),
    }
    if isinstance(how, str):
        settings: dict[str, Any] = {
            "model_type": KIND,
            "architectures": ["LmforgeForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_lmforge.LmforgeConfig",
                "AutoModelForCausalLM": "modeling_lmforge.LmforgeForCausalLM",
            },
            "architecture": dataclasses.replace(loaded.config, ahead=0).to_json(),
            "tie_word_embeddings": loaded.config.tied,
        }
    else:
        settings = dict(how.settings)
    return {**settings, **token_ids(loaded), "dtype": _dtype(loaded), OWN: kept}, how


def _dtype(loaded: LoadedModel) -> str:
    return str(next(loaded.model.parameters()).dtype).removeprefix("torch.")


def our_tensors(loaded: LoadedModel, config: GPTConfig) -> dict[str, LazyTensor]:
    """The tensors that texts go through; those that `config` has beside ours (biases) are zeros."""
    own = dict(loaded.model.named_parameters(remove_duplicate=False)) | dict(loaded.model.named_buffers())
    dtype = next(iter(own.values())).dtype

    def of(name: str, tensor: Tensor) -> LazyTensor:
        if name in own:
            return LazyTensor.of(own[name].detach())
        return LazyTensor(tuple(tensor.shape), dtype, lambda: torch.zeros(tensor.shape, dtype=dtype))

    return {name: of(name, tensor) for name, tensor in texts_state(config)}


def their_tensors(how: Standard, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Our tensors as those of a family, each made when it is written."""
    result: dict[str, LazyTensor] = {}
    for place in how.family.places(how.config, tensors):
        lazy = tensors[place.ours]
        for number, name in enumerate(place.theirs):
            rows = (place.sizes[number] if place.sizes else lazy.shape[0]) + place.skipped
            shape = (rows, *lazy.shape[1:])
            turned = shape[::-1] if place.transposed and len(shape) == 2 else shape
            result[name] = LazyTensor(turned, lazy.dtype, _part(place, lazy, name))
    return result


def _part(place: Place, lazy: LazyTensor, name: str) -> Any:
    return lambda: next(part for theirs, part in place.split(lazy.make()) if theirs == name)


class TransformersExport(Exporter):
    """`--to transformers`."""

    name = "transformers"
    packages = ("transformers",)

    def write(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """A folder as `save_pretrained` makes it."""
        settings, how = config_json(loaded)
        path.mkdir()
        if isinstance(how, str):
            (path / MODELING).write_text(modeling_source(), encoding="utf-8")
            tensors = our_tensors(loaded, dataclasses.replace(loaded.config, ahead=0))
            report = {"architecture": f"{MODELING} (trust_remote_code)", "not_standard": how}
            write_tokenizer(loaded, path, use_cache=False)
        else:
            tensors = their_tensors(how, our_tensors(loaded, how.config)) | zeros(
                how, next(loaded.model.parameters()).dtype
            )
            report = {"architecture": how.family.architecture}
            if how.config.biases != loaded.config.biases:
                report["biases"] = "zeros, which the architecture has and the network has not"
            write_tokenizer(loaded, path)
        (path / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        write_tensors(path, tensors)
        if loaded.config.ahead:
            report["left_out"] = "what predicts tokens further ahead (model.ahead), which training alone uses"
        return report

    def open(self, path: Path, loaded: LoadedModel) -> Running:
        """In transformers, on the CPU."""
        return Running(path)

    def check(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """Logits and greedy tokens, and the ids of a text."""
        from transformers import AutoTokenizer

        with quiet():
            theirs = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
            ids = theirs.encode(PROMPT, add_special_tokens=False)
        ours = loaded.tokenizer.encode(PROMPT)
        if ids != ours:
            raise LmforgeError(f"transformers encodes {PROMPT!r} as {ids[:8]}…, we as {ours[:8]}…; nothing was written")
        return super().check(loaded, path)


def zeros(how: Standard, dtype: torch.dtype) -> dict[str, LazyTensor]:
    """Tensors that a family has and no network of ours: biases of the norms of queries and keys."""
    if how.family is not PERSIMMON or not how.config.qk_norm:
        return {}
    bias = LazyTensor.of(torch.zeros(how.config.head_width, dtype=dtype))
    layers = map(how.family.layer.format, range(how.config.layers))
    return {layer + name: bias for layer in layers for name in PERSIMMON_ZEROS}


def modeling_source() -> str:
    """The modelling file: the layers, and the model without its import of them."""
    folder = Path(__file__).parent
    layers, model = ((folder / name).read_text(encoding="utf-8") for name in ("modeling_layers.py", MODELING))
    own = [line for line in model.splitlines() if not line.startswith("from lmforge.")]
    return layers + "\n\n" + "\n".join(own) + "\n"


class Running:
    """A model in transformers."""

    def __init__(self, path: Path) -> None:
        library: Any = importlib.import_module("transformers")
        self.model: Any
        with quiet():
            self.model, problems = library.AutoModelForCausalLM.from_pretrained(
                path, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
            )
        wrong = {key: sorted(names) for key, names in problems.items() if names}
        if wrong:
            raise LmforgeError(f"transformers: tensors do not fit the architecture: {wrong}; nothing was written")
        self.model.eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """As `export.Product.logits`."""
        ids = torch.tensor([tokens])
        logits: Tensor = self.model(ids, attention_mask=torch.ones_like(ids)).logits[0]
        return logits

    @torch.inference_mode()
    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """As `export.Product.greedy`, by its `generate`."""
        settings = self.model.generation_config
        settings.eos_token_id = None
        settings.do_sample = False
        ids = torch.tensor([tokens])
        with quiet():
            result: Tensor = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count)
        return [int(token) for token in result[0, len(tokens) :]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without warnings and bars meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


EXPORTERS.register(TransformersExport.name, TransformersExport())
