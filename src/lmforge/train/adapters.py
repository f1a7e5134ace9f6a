"""Low-rank adapters: small matrices learned beside frozen ones, saved alone, and merged into an ordinary model (Hu et
al. 2021, LoRA).

    x ─▶ x Wᵀ + b (frozen) ───────────┐
    └──▶ (x Aᵀ) Bᵀ · alpha / rank ────┴─▶ +          merged: W + alpha / rank · B A

Checkpoints and the chosen model hold merged weights, so that each is an ordinary model; the adapters stand beside them
(`adapter.safetensors`), and go on from there. The average of several merged models is one adapter too, of the sum of
their ranks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import TENSORS, load_model, load_tokenizer, model_name, model_tensors, read_config
from lmforge.formats.peft import AdapterParts
from lmforge.formats.registry import FORMATS, Format
from lmforge.model.gpt import GPT
from lmforge.recipe import Lora
from lmforge.record import atomic_directory, content_hash, read_manifest, verify_directory, write_atomic

ADAPTER, ADAPTER_CONFIG = "adapter.safetensors", "adapter.json"
MOST_PARENTS = 4  # adapter, model, run and the folder of runs: whose folders are searched for a base that was moved
Weights = dict[str, Tensor]


class Adapted(nn.Linear):
    """A frozen linear layer and a product of low rank learned beside it (eq. 3): adapter_a (rank, in), adapter_b (out,
    rank)."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        """`scale` is alpha / rank. A is drawn uniformly within 1/√in, B is zero: at first the layer is what it was."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        a = torch.empty(rank, linear.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(linear.in_features)
        self.adapter_a = nn.Parameter(a.to(linear.weight.device))
        self.adapter_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.adapter_a), self.adapter_b) * self.scale


def adapt(model: GPT, lora: Lora, seed: int) -> None:
    """Freeze a model and give its layers' matrices adapters, in place.

    Raises:
        InputError: a target that this network's layers do not have.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        there = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        for target in lora.targets:
            if target not in there:
                raise InputError(
                    f"finetune.lora.targets: {target} is no matrix of this network's layers; it has {', '.join(there)}"
                )
            owner, _, name = target.rpartition(".")
            setattr(block.get_submodule(owner), name, Adapted(there[target], lora.rank, lora.scale, generator))


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def adapter_tensors(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Weights:
    """A and B of each adapter, of the model or of a whole state of it; empty where there is none."""
    return {
        f"{name}.{part}": getattr(layer, part).detach() if state is None else state[f"{name}.{part}"]
        for name, layer in adapted_layers(model).items()
        for part in ("adapter_a", "adapter_b")
    }


@torch.no_grad()
def load_adapters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put A and B back.

    Raises:
        InputError: they are of another rank or of other layers.
    """
    own = adapter_tensors(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
        raise InputError(
            "the checkpoint's adapters are of another rank or of other layers than finetune.lora; run with --fresh or "
            "another name"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def merged(
    model: GPT, adapters: Mapping[str, Tensor] | None = None, state: Mapping[str, Tensor] | None = None
) -> Weights:
    """The weights of an ordinary model that computes the same: adapters (its own, or those given) added to what they
    stand beside. `state`: the whole tensors of the model, where it does not hold them itself."""
    tensors, layers = model_tensors(model) if state is None else dict(state), adapted_layers(model)
    parts = adapter_tensors(model, state) if adapters is None else adapters
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(("adapter_a", "adapter_b"))}
    for name, layer in layers.items():
        a, b = (parts[f"{name}.{part}"].cpu() for part in ("adapter_a", "adapter_b"))
        tensors[f"{name}.weight"] = _added(tensors[f"{name}.weight"], a, b, layer.scale)
    return tensors


def _added(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


@torch.no_grad()
def hold(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of an ordinary model into one that may have adapters, which then add nothing."""
    model.load_state_dict(holding(model, weights), strict=False)


def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Weights:
    """The state of a model that may have adapters, in which it computes what an ordinary model with `weights` does."""
    state = {}
    for name, parameter in model.state_dict().items():
        if name in weights:
            state[name] = weights[name]
        elif name.endswith("adapter_b"):
            state[name] = torch.zeros_like(parameter)
    return state


def averaged(members: Sequence[Mapping[str, Tensor]]) -> Weights:
    """One adapter that is the mean of several: B A summed over them is [B₁ … B_k] [A₁; …; A_k] / k, exactly, with the
    sum of their ranks."""
    if len(members) == 1:
        return dict(members[0])
    joined = {}
    for name in members[0]:
        rows = name.endswith("adapter_a")
        stacked = torch.cat([member[name] for member in members], 0 if rows else 1)
        joined[name] = stacked if rows else stacked / len(members)
    return joined


def fingerprint(base: Path) -> str:
    """The SHA-256 of a saved model's weights, from its manifest."""
    manifest = read_manifest(base)
    if manifest is None or TENSORS not in manifest["files"]:
        raise InputError(f"{base}: no whole model there; make it again, or restore it")
    return str(manifest["files"][TENSORS]["sha256"])


def write_adapter(directory: Path, adapters: Mapping[str, Tensor], base: Path, lora: Lora) -> None:
    """Save adapters alone, with the hash of the model that they belong to, and where that is, also as seen from here.

    Raises:
        LmforgeError: the disk is full.
    """
    with atomic_directory(directory) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in adapters.items()}, temporary / ADAPTER)
        content = {
            "format": 1,
            "scale": lora.scale,
            "targets": list(lora.targets),
            "base": {
                "path": str(base),
                "relative": os.path.relpath(base.resolve(), directory.resolve()),
                "sha256": fingerprint(base),
            },
        }
        write_atomic(temporary / ADAPTER_CONFIG, json.dumps(content, indent=1) + "\n")


def base_of(directory: Path) -> Path:
    """The folder of the model that a saved adapter belongs to: the recorded one, or any beside the adapter or its run
    whose weights have the recorded hash.

    Raises:
        InputError: the adapter is not readable, or no such model is there (names the hash and where it was looked for).
    """
    verify_directory(directory)
    base = _config(directory)["base"]
    other = None
    for folder in _places(directory.resolve(), base):
        present = _hash_of(folder)
        if present == base["sha256"]:
            return folder
        other = other or (f"; {folder} has {present[:12]}…" if present and folder == Path(base["path"]) else None)
    whole = directory.resolve().parent
    served = f"; {whole} holds both merged, and needs no base" if (whole / TENSORS).is_file() else ""
    raise InputError(
        f"{directory}: an adapter of a model with SHA-256 {base['sha256'][:12]}…, which is neither in {base['path']} "
        f"nor beside the adapter or its run{other or ''}; put it back, or into {directory / 'base'}{served}"
    )


def _places(directory: Path, base: Mapping[str, Any]) -> Iterator[Path]:
    """Where an adapter's base may be: where it was, there as seen from the adapter, with it, and in what stands beside
    it, its model, its run."""
    yield Path(base["path"])
    if "relative" in base:
        yield Path(os.path.normpath(directory / base["relative"]))
    yield directory / "base"
    for parent in list(directory.parents)[:MOST_PARENTS]:
        with contextlib.suppress(OSError):
            for beside in sorted(each for each in parent.iterdir() if each.is_dir()):
                yield from (beside, beside / "model")


def _hash_of(folder: Path) -> str | None:
    """The hash of the weights of a saved model, None where there is none."""
    try:
        return fingerprint(folder) if (folder / TENSORS).is_file() else None
    except (InputError, OSError):
        return None


def load_with_adapter(directory: Path) -> GPT:
    """The base of a saved adapter with the adapter merged into it.

    Raises:
        InputError: as `base_of`.
    """
    model = load_model(base_of(directory))
    adapters, scale = load_file(directory / ADAPTER), float(_config(directory)["scale"])
    weights = model_tensors(model)
    for name in [name.removesuffix(".adapter_a") for name in adapters if name.endswith(".adapter_a")]:
        if f"{name}.weight" not in weights:
            raise InputError(
                f"{directory / ADAPTER}: holds {name}, which its base does not have; train the adapter again"
            )
        weights[f"{name}.weight"] = _added(
            weights[f"{name}.weight"], adapters[f"{name}.adapter_a"], adapters[f"{name}.adapter_b"], scale
        )
    hold(model, weights)
    return model


def _config(directory: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((directory / ADAPTER_CONFIG).read_text())
        return content
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{directory}: no readable {ADAPTER_CONFIG}; give the folder of an adapter") from error


class Adapter(Format):
    """The folder of an adapter: read with its base, merged into it."""

    name = "adapter"

    def detect(self, path: Path) -> bool:
        """A folder with adapter.json."""
        return (path / ADAPTER_CONFIG).is_file()

    def parts(self, path: Path) -> AdapterParts:
        """The adapter by itself.

        Raises:
            InputError: as `base_of`.
        """
        return AdapterParts(base_of(path), load_file(path / ADAPTER), float(_config(path)["scale"]))

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """As `load_with_adapter`, with the base's tokenizer; base and adapter are verified in any case."""
        base = base_of(path)
        config = read_config(base)
        return LoadedModel(
            tokenizer=load_tokenizer(base, config),
            model=load_with_adapter(path),
            name=model_name(path.resolve()),
            directory=path,
            compression=tuple(config["compression"]),
            notes=config.get("notes", {}),
            fingerprint=(content_hash(path) or "")[:12],
        )


FORMATS.register(Adapter.name, Adapter())
