"""Shards + network → checkpoints → the chosen model.

    for step: rate ─▶ batch(step) ─▶ loss, backward (micro-batches) ─▶ sum over ranks ─▶ clip ─▶ update ─▶ journal ─▶ validate, save

Resuming is the only way a run starts: from step 0, or from the newest complete checkpoint. The data order is a pure function of seed and
step, so the state of a run is weights, optimizer and a few numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmforge.errors import InputError, Interrupted, LmforgeError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.saved import load_model, model_tensors, write_model
from lmforge.model.score import token_nats
from lmforge.parallel.mesh import Mesh, join_mesh
from lmforge.parallel.replicas import Replicas
from lmforge.progress import Bar, in_words, say
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, write_atomic
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.loader import Batch, Loader, Prefetch
from lmforge.tokens.mixture import at, weights_of
from lmforge.tokens.shards import Shards, verify_once
from lmforge.train.checkpoint import Checkpoints, write_snapshot
from lmforge.train.ensemble import Candidate, Choice, MovingAverage, snapshot_steps
from lmforge.train.fastest import Way, choose, describe
from lmforge.train.journal import Journal
from lmforge.train.optim import build_optimizers, rate, set_rate


def network_of(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The network that a recipe's [model] and a vocabulary make."""
    m = recipe.model
    return GPTConfig(
        vocab_size=vocab_size, context=recipe.tokens.context, layers=m.layers, d_model=m.d_model, heads=m.heads,
        kv_heads=m.kv_heads or m.heads, d_ff=m.d_ff or 4 * m.d_model, activation=m.activation, norm=m.norm, positions=m.positions,
        biases=m.biases, qk_norm=m.qk_norm, ngram_rows=m.ngram_rows,
    )


def train(recipe: Recipe, tokens_dir: Path, out: Path, model_out: Path) -> dict[str, Any]:
    """Train to the end (or on from the newest checkpoint), write the chosen model to `model_out`, return the figures.

    Raises:
        InputError: shards and recipe do not fit, the corpus is smaller than one batch, a checkpoint was altered.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
        LmforgeError: the loss is no longer a number, or the disk is full.
    """
    mesh = join_mesh(recipe.parallel.data)
    try:
        with contextlib.closing(TrainingRun(recipe, tokens_dir, out, mesh)) as run:
            run.go()
            mesh.wait()
            return run.finish(model_out)
    finally:
        mesh.close()


class TrainingRun:
    """One training run on one rank: what it holds and what it does at each step."""

    def __init__(self, recipe: Recipe, tokens_dir: Path, out: Path, mesh: Mesh) -> None:
        self.recipe, self.mesh, self.out = recipe, mesh, out
        settings, context = recipe.train, recipe.tokens.context
        self.tokenizer_file = tokens_dir / "tokenizer.json"
        tokenizer = Tokenizer.load(self.tokenizer_file)
        self.token_bytes = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
        self.rows = settings.batch_tokens // context
        if self.rows < mesh.world:
            raise InputError(f"train.batch_tokens: {settings.batch_tokens} is less than one row of {context} tokens for each process; raise it")
        self.batch_tokens = self.rows * context
        self.steps = settings.steps or math.ceil((settings.tokens or 20_000_000) / self.batch_tokens)
        self.warmup = settings.warmup if settings.warmup is not None else min(2000, math.ceil(self.steps * 0.04))
        self.save_every = settings.checkpoint_every or math.ceil(self.steps / 5)
        self.validate_every = settings.validate_every or math.ceil(self.steps / 10)
        training, held_out = Shards.open(tokens_dir, "train"), Shards.open(tokens_dir, "valid")
        if mesh.leads:
            verify_once((training, held_out), out / "verified")
        self.loader = Loader(training, context, self.rows, recipe.seed, recipe.tokens.packing, weights_of(recipe, training.groups), self.steps)
        self.valid = validation_rows(held_out, context, settings.validate_tokens)
        wanted = self.valid[1]
        self.valid_bytes = int(self.token_bytes[wanted[wanted >= 0].numpy()].sum())  # of text that the validation rows predict
        self.model = GPT(network_of(recipe, tokenizer.vocab_size))
        self.model.initialise(recipe.seed)
        self.model.to(mesh.device)
        self.way: Way = choose(recipe, self.model, mesh.device, self.rows // mesh.world, self.steps, mesh.world)
        self.half = settings.precision == "bf16" or (settings.precision == "auto" and mesh.device.type == "cuda")
        self.optimizers = build_optimizers(self.model, settings)
        self.compiled = torch.compile(self.model.loss) if self.way.compiled else None
        self.checkpoints = Checkpoints(out / "checkpoints", settings.keep)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_step": None, "best_valid": math.inf}
        self.state |= self.checkpoints.load_newest(self.model, self.optimizers) or {}
        self.moving = MovingAverage(self.model, self.steps) if settings.ensemble else None
        if self.moving and self.state["step"]:
            self.moving.restore(self.checkpoints.average(self.state["step"]))
        self.snapshots = set(snapshot_steps(self.steps, settings.ensemble)) - {self.steps}  # the last is a checkpoint
        self.networks = Replicas(self.model, self.way.replicas, self.way.threads)
        if mesh.leads:
            say(f"train: {sum(p.numel() for p in self.model.parameters()):,} parameters, {self.steps} steps of {self.batch_tokens} tokens")
            say(f"train: {describe(self.way)}")

    def go(self) -> None:
        """Every step that is left."""
        done = self.state["step"]
        journal = Journal(self.out / "metrics.jsonl", done) if self.mesh.leads else None
        total = self.steps * self.batch_tokens
        data = Prefetch(self.loader, self.loader.share(self.mesh.rank, self.mesh.world), done, self.steps)
        with contextlib.closing(data), stop_signals() as stop, Bar("train", total, "tok", done * self.batch_tokens) as bar:
            before, started = self.state["seconds"], time.monotonic()
            for step in range(done, self.steps):
                figures = self.step(step, data.take()) | {"data_wait": round(data.waited, 6)}
                seconds = before + time.monotonic() - started
                self.state |= {"step": step + 1, "seconds": seconds}
                if journal:
                    journal.write(step=step + 1, tokens=(step + 1) * self.batch_tokens, seconds=round(seconds, 3),
                                  tokens_per_second=round(bar.rate), **figures)
                self.keep_for_averaging(step + 1)
                last = step + 1 == self.steps
                stopping = self.mesh.total(float(stop.is_set()))[0] > 0  # all ranks stop at the same step
                saving = last or (step + 1) % self.save_every == 0 or stopping
                if saving or (step + 1) % self.validate_every == 0:
                    self.validate(step + 1, journal)
                if saving:
                    self.save()
                bar.step(self.batch_tokens, f"step {step + 1}/{self.steps} bits/byte {figures['bits_per_byte']:.3f}")
                if stopping and not last:
                    raise Interrupted(f"stopped after step {step + 1} of {self.steps}, saved in {self.checkpoints.path(step + 1)}; "
                                      "the same command goes on from there")
        if journal:
            journal.close()

    def close(self) -> None:
        """End the threads."""
        self.networks.close()

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One update: rate, forward and backward of this rank's rows of the batch, sum over ranks, clip, update."""
        share = rate(step, self.steps, self.warmup, self.recipe.train.final_lr)
        set_rate(self.optimizers, share)
        context = int(at(self.recipe.train.context_schedule or ((0.0, self.recipe.tokens.context),), step / self.steps))
        parts = self.networks.run(lambda network, rows: self.gradients(network, batch, rows, context), range(len(batch.inputs)))
        self.mesh.average_gradients(self.model.parameters())
        mean, text_bytes, counted = self.mesh.total(*(sum(column) for column in zip(*parts, strict=True)))
        if counted != self.batch_tokens:  # some tokens do not count: the mean is over those that do, in all ranks
            mean = self._rescale(mean, counted)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip)
        if not math.isfinite(mean) or not math.isfinite(float(norm)):
            raise LmforgeError(f"train: the loss at step {step + 1} is {mean} (gradient norm {float(norm)}); lower train.peak_lr or "
                               f"train.matrix_lr and run again: it goes on from step {(self.checkpoints.steps() or [0])[-1]}")
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        bits = mean * counted / math.log(2) / max(1, text_bytes)
        return {"loss": mean, "bits_per_byte": bits, "lr": self.recipe.train.peak_lr * share, "grad_norm": float(norm)}

    def _rescale(self, mean: float, counted: float) -> float:
        """From a mean over the batch's tokens, in gradients and loss, to one over the `counted` among them."""
        scale = self.batch_tokens / max(1.0, counted)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale
        return mean * scale

    def gradients(self, network: nn.Module, batch: Batch, rows: range, context: int) -> tuple[float, int, int]:
        """Forward and backward of some rows of the batch in micro-batches, each row cut to `context`; their share of the loss, and
        the UTF-8 bytes and the number of the tokens that count in it."""
        size = max(1, self.way.micro_batch_tokens // self.recipe.tokens.context)
        nats = torch.zeros((), device=self.mesh.device)
        text_bytes = counted = 0
        for first in range(rows.start, rows.stop, size):
            part = batch.part(first, min(size, rows.stop - first)).cut(context)
            counting = part.targets[part.targets >= 0]
            text_bytes, counted = text_bytes + int(self.token_bytes[counting].sum()), counted + len(counting)
            tokens, wanted = torch.from_numpy(part.inputs).to(self.mesh.device), torch.from_numpy(part.targets).to(self.mesh.device)
            documents = None if part.documents is None else torch.from_numpy(part.documents).to(self.mesh.device)
            with self.autocast():
                # Divided by the global count, so that neither micro-batches, replicas nor ranks change the gradient.
                loss = (self.compiled or network.loss)(tokens, wanted, documents) / self.batch_tokens  # type: ignore[operator]
            loss.backward()
            nats += loss.detach()
        return float(nats), text_bytes, counted

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 arithmetic over float32 weights where that is the fast safe type."""
        return torch.autocast(self.mesh.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()

    def validate(self, step: int, journal: Journal | None) -> None:
        """Bits per byte of the fixed validation rows; remembers it for the next checkpoint."""
        self.state["valid"] = float(self.nats().double().sum()) / math.log(2) / max(1, self.valid_bytes)
        if journal:
            journal.write(step=step, tokens=step * self.batch_tokens, valid_bits_per_byte=self.state["valid"])

    def nats(self) -> Tensor:
        """−ln p of each validation token under the weights as they are, (R, context); 0 where a token does not count."""
        inputs, targets = self.valid

        def work(network: nn.Module, rows: range) -> list[Tensor]:
            with self.autocast():
                return [token_nats(network, inputs[piece].to(self.mesh.device), targets[piece].to(self.mesh.device)).cpu()  # type: ignore[arg-type]
                        for piece in (slice(first, min(first + 16, rows.stop)) for first in range(rows.start, rows.stop, 16))]

        return torch.cat([piece for part in self.networks.run(work, range(len(inputs))) for piece in part])

    def keep_for_averaging(self, step: int) -> None:
        """What the ensembles of the end need of the weights after `step` steps."""
        if self.moving:
            self.moving.update(step)
        if step in self.snapshots and self.mesh.leads:
            write_snapshot(self.snapshot(step), self.model, step, self.tokenizer_file)

    def snapshot(self, step: int) -> Path:
        """Where the weights of a step stand alone."""
        return self.out / "snapshots" / self.checkpoints.path(step).name

    def save(self) -> None:
        """Checkpoint now; the best so far is remembered in it."""
        if self.state["valid"] < self.state["best_valid"]:
            self.state |= {"best_step": self.state["step"], "best_valid": self.state["valid"]}
        if self.mesh.leads:
            average = self.moving.weights if self.moving else None
            self.checkpoints.save(self.state["step"], self.model, self.optimizers, self.state, self.tokenizer_file, average)
        self.mesh.wait()

    def finish(self, model_out: Path) -> dict[str, Any]:
        """Write the best weights that the run's checkpoints and averages give as the model; the figures of the whole run."""
        table = self.out / "ensemble.json"
        if self.mesh.leads:
            best, weights, candidates = self.choose()
            with atomic_directory(model_out) as temporary:
                write_model(temporary, self.model.config, weights, self.tokenizer_file,
                            notes={"made_from": best.row(), "valid_bits_per_byte": best.bits_per_byte})
            write_atomic(table, json.dumps({"chosen": best.name, "candidates": [each.row() for each in candidates]}, indent=1) + "\n")
        self.mesh.wait()
        tensors = model_tensors(load_model(model_out))
        ensemble = json.loads(table.read_text())
        seconds, tokens = self.state["seconds"], self.steps * self.batch_tokens
        chosen = next(each for each in ensemble["candidates"] if each["name"] == ensemble["chosen"])
        say(f"train: {in_words(seconds)}, {chosen['bits_per_byte']:.4f} bits per byte of validation text with {chosen['name']}")
        return {
            "steps": self.steps, "tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "valid_bits_per_byte": chosen["bits_per_byte"], "weights_sha256": hash_weights(tensors), "best_step": self.state["best_step"],
            "parameters": sum(tensor.numel() for tensor in tensors.values()), "way": describe(self.way), **ensemble,
        }

    def choose(self) -> tuple[Candidate, dict[str, Tensor], list[Candidate]]:
        """The best candidate, its weights, and all of them. Afterwards the network holds some candidate's weights."""
        def load(step: int) -> dict[str, Tensor]:
            path = self.snapshot(step) if step in self.snapshots else self.checkpoints.path(step)
            return model_tensors(load_model(path))

        def score(weights: dict[str, Tensor]) -> Tensor:
            for name, parameter in self.model.state_dict().items():
                if name in weights:
                    parameter.copy_(weights[name])
            return self.nats()

        last = {self.steps} if self.recipe.train.ensemble else set()
        choice = Choice(load, score, self.valid_bytes)
        moving = {**model_tensors(self.model), **{name: weight.cpu() for name, weight in self.moving.weights.items()}} if self.moving else None
        best, weights = choice.choose([*({self.state["best_step"]} | last | self.snapshots)], moving)
        return best, weights, choice.table


def hash_weights(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def validation_rows(shards: Shards, context: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows (R, context) spread evenly over the validation split, with targets; R = tokens/context or as many as there are."""
    available = (shards.tokens - 1) // context
    rows = max(1, min(available, tokens // context))
    starts = [row * available // rows * context for row in range(rows)]
    stacked = torch.from_numpy(np.stack([shards.read(start, context + 1) for start in starts]))
    targets = stacked[:, 1:].clone()
    targets[targets == 0] = -1  # which document comes next is not language
    if shards.masked:
        targets[~torch.from_numpy(np.stack([shards.counts(start + 1, context) for start in starts]))] = -1
    return stacked[:, :-1].contiguous(), targets


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as usual. Handlers are put back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        stop.set()
        say("train: finishing this step, then saving (again to stop at once)")
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
