"""Checkpoints: everything that a run needs to go on exactly as if it had never stopped. Atomic, checksummed, no pickle.

    train/checkpoints/step-00000500/   model.safetensors, optimizer.safetensors, state.json, config.json,
                                       tokenizer.json, manifest.json
                                       average.safetensors: the moving average of the weights, once it has begun
    train/snapshots/step-00000476/     model.safetensors, config.json, tokenizer.json, manifest.json: weights alone, to
                                       average

Where adapters are trained, model.safetensors has them merged, and adapter.safetensors beside it has them apart.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.formats.native import write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel.layout import Layout
from lmforge.parallel.shares import like_part
from lmforge.progress import log_once
from lmforge.record import atomic_directory, content_hash, sweep_temporaries, verify_directory
from lmforge.train.adapters import ADAPTER, adapter_tensors, load_adapters, merged
from lmforge.train.remote_checkpoints import fetch_newest, put, remove

Weights = dict[str, Tensor]
AVERAGE = "average.safetensors"
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum", "momentum_buffer")  # fields in the shape of their parameter
_NAME = re.compile(r"step-(\d{8})$")


def _names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters in the order in which it numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], layout: Layout | None = None
) -> dict[str, Tensor]:
    """The state of all optimizers as named tensors: `OPTIMIZER/PARAMETER/FIELD`, where PARAMETER is its name in
    the whole network, so that another grouping or order of the parameters, on other devices, finds its own. With a
    `layout` all processes take part, and the main rank has the whole of each (the others nothing)."""
    tensors, parameter_of = {}, {}
    for owner, optimizer in optimizers.items():
        names = _names_in_order(model, optimizer)
        for index, fields in optimizer.state_dict()["state"].items():
            for field, value in fields.items():
                tensors[key := f"{owner}/{names[index]}/{field}"] = torch.as_tensor(value).detach()
                if field in _LIKE_PARAMETER:
                    parameter_of[key] = names[index]
    if layout is not None:
        return layout.gathered(tensors, parameter_of)
    return {key: tensor.contiguous().cpu() for key, tensor in tensors.items()}


def restore_optimizers(
    model: GPT,
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    where: str = "optimizer.safetensors",
    layout: Layout | None = None,
) -> None:
    """Put the state of `optimizer_tensors` back; with a `layout` this process's part of it. Where earlier versions
    wrote a parameter's number in its optimizer instead of its name, that number is taken.

    Raises:
        InputError: state of an optimizer or a parameter that is not there, or of another shape (`where` names the
            file).
    """
    states: dict[str, dict[int, dict[str, Tensor]]] = {owner: {} for owner in optimizers}
    numbers = {
        owner: {name: number for number, name in enumerate(_names_in_order(model, optimizer))}
        for owner, optimizer in optimizers.items()
    }
    own = dict(model.named_parameters())
    shapes = {name: parameter.shape for name, parameter in own.items()}
    if layout is not None:
        shapes |= layout.shapes(model)
    for path, value in tensors.items():
        owner, name, field = path.split("/")
        known = numbers.get(owner, {})
        names = list(known)
        if name.isdigit() and int(name) < len(names):
            name = names[int(name)]
        if layout is not None and name not in known and layout.shares_network and owner in numbers and name in shapes:
            continue  # another process's
        if name not in known or (field in _LIKE_PARAMETER and value.shape != shapes[name]):
            raise InputError(
                f"{where}: it has state of {path} {tuple(value.shape)}, which no parameter of this recipe's {owner} "
                "has; run with --fresh or another name"
            )
        if layout is not None and field in _LIKE_PARAMETER:
            value = like_part(own[name], layout.part(name, own[name], value).contiguous())
        states[owner].setdefault(known[name], {})[field] = value
    for owner, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[owner], "param_groups": optimizer.state_dict()["param_groups"]})


@contextlib.contextmanager
def full_disk_as_os_error() -> Iterator[None]:
    """safetensors reports a full disk by an error of its own; give it the form that all other writing has."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, str(error)) from error


def write_snapshot(
    directory: Path, model: GPT, step: int, tokenizer: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """The weights of a step alone, loadable on their own. `weights`: the whole tensors of the model, where it does not
    hold them itself.

    Raises:
        LmforgeError: the disk is full.
    """
    with atomic_directory(directory) as temporary, full_disk_as_os_error():
        write_model(temporary, model.config, merged(model, state=weights), tokenizer, notes={"step": step})
        if adapters := adapter_tensors(model, weights):
            save_file({name: tensor.cpu() for name, tensor in adapters.items()}, temporary / ADAPTER)


KEY = "key"  # of the training that a folder holds: what of the recipe and of its inputs decides what it makes


class Checkpoints:
    """The checkpoints of one run: the newest `keep` and the best stay."""

    def __init__(self, directory: Path, keep: int, store: str | None = None) -> None:
        """`store`: an address that fsspec understands (s3://bucket/run), to which every complete checkpoint is copied
        too, and from which the newest is fetched where there is none here; each training, as the file `KEY` beside
        `directory` names it, has a folder of its own there."""
        mark = directory.parent / KEY
        self.directory, self.keep = directory, keep
        self.store = store and (f"{store.rstrip('/')}/{mark.read_text()[:16]}" if mark.is_file() else store)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lmforge-checkpoint")
        self._writing: Future[None] | None = None

    def sweep(self) -> None:
        """Remove what a killed run left half written, of checkpoints and of what stands beside them. For the rank that
        writes, before anything is written: what another rank is writing now looks the same."""
        run = self.directory.parent
        for folder in (self.directory, run, *(path for path in run.glob("*") if path.is_dir())):
            if folder.exists():
                sweep_temporaries(folder)

    def resolve(self) -> None:
        """Until what `save` began is written.

        Raises:
            LmforgeError: it could not be; the earlier checkpoints stay usable.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread that writes, when it is done."""
        try:
            self.resolve()
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        if not self.directory.exists():
            return []
        named = [(int(match[1]), path) for path in self.directory.iterdir() if (match := _NAME.match(path.name))]
        return sorted(step for step, path in named if content_hash(path))

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is."""
        return self.directory / f"step-{step:08d}"

    def save(
        self,
        step: int,
        model: GPT,
        optimizers: Mapping[str, torch.optim.Optimizer],
        state: Mapping[str, Any],
        tokenizer: Path,
        average: Mapping[str, Tensor] | None = None,
        wait: bool = True,
        weights: Mapping[str, Tensor] | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint, then remove those that are neither among the newest nor the best (`state["best_step"]`).

        Without `wait` everything is copied and a thread writes it while training goes on; one at a time. `resolve`
        waits for it. `weights`, `moments`: the whole tensors of the model, and of the optimizers' state, where this
        process does not hold them itself.

        Raises:
            LmforgeError: the disk is full, now or at the `save` before that did not wait; the earlier checkpoints stay
                usable.
        """
        self.resolve()
        tensors = merged(model, state=weights)
        moments = optimizer_tensors(model, optimizers) if moments is None else moments
        averaged, adapters = (
            {name: weight.detach().cpu() for name, weight in each.items()}
            for each in (average or {}, adapter_tensors(model, weights))
        )
        content = json.dumps(dict(state), indent=1) + "\n"
        if not wait:
            tensors, moments, averaged, adapters = (
                {name: tensor.clone() for name, tensor in each.items()}
                for each in (tensors, moments, averaged, adapters)
            )
        config, best = model.config, state.get("best_step")
        parts = {"optimizer.safetensors": dict(moments), AVERAGE: averaged, ADAPTER: adapters}
        writing = self._writer.submit(self._write, step, config, tensors, parts, content, tokenizer, best)
        if wait:
            writing.result()
        else:
            self._writing = writing

    def _write(
        self,
        step: int,
        config: GPTConfig,
        tensors: Weights,
        parts: dict[str, Weights],
        state: str,
        tokenizer: Path,
        best: int | None,
    ) -> None:
        with atomic_directory(self.path(step)) as temporary, full_disk_as_os_error():
            write_model(temporary, config, tensors, tokenizer, notes={"step": step})
            for name, part in parts.items():
                if part or name.startswith("optimizer"):
                    save_file(part, temporary / name)
            (temporary / "state.json").write_text(state)
        if self.store:
            put(self.path(step), self.store)
        kept = {*self.steps()[-self.keep :], best}
        for old in self.steps():
            if old not in kept:
                shutil.rmtree(self.path(old))
                if self.store:
                    remove(self.store, self.path(old).name)

    def average(self, step: int) -> dict[str, Tensor]:
        """The moving average in the checkpoint of `step`; empty where it had not begun."""
        path = self.path(step) / AVERAGE
        return load_file(path) if path.exists() else {}

    def prepare(self) -> None:
        """Finish what is being written, and fetch from the store where nothing is here; then `load_newest` finds what
        there is."""
        self.resolve()
        if self.store and not self.steps():
            fetch_newest(self.store, self.directory)

    def load_newest(
        self,
        model: GPT,
        optimizers: Mapping[str, torch.optim.Optimizer],
        layout: Layout | None = None,
    ) -> dict[str, Any] | None:
        """Restore the newest complete checkpoint in place and return its state; None when there is none. `layout`: how
        whole tensors become what a process holds of the model (default: it holds the whole).

        Raises:
            InputError: its bytes were changed (names the file), or it does not fit this recipe.
        """
        self.prepare()
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        try:
            verify_directory(path)
        except InputError as error:
            earlier = (
                f"; or remove {path} to go on from step {steps[-2]}"
                if len(steps) > 1
                else f"; or remove {path} to start again"
            )
            raise InputError(f"{error}{earlier}") from error
        tensors = load_file(path / "model.safetensors")
        if layout is not None and layout.shares_network:
            shapes = layout.shapes(model)
        else:
            shapes = {name: tensor.shape for name, tensor in merged(model).items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise InputError(f"{path}: made with another [model]; run with --fresh or another name")
        if adapter_tensors(model):
            load_adapters(model, load_file(path / ADAPTER) if (path / ADAPTER).exists() else {})
        elif layout is None:
            model.load_state_dict(tensors, strict=False)
        else:
            layout.load_state(model, tensors)
        moments = path / "optimizer.safetensors"
        restore_optimizers(model, optimizers, load_file(moments), str(moments), layout)
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        log_once(f"train: going on from step {state['step']} ({path})")
        return state
