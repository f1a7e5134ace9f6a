"""Shards + network → checkpoints → the chosen model.

    for step: rate ─▶ batch(step) ─▶ loss, backward (micro-batches) ─▶ sum over ranks ─▶ fit? ─▶ clip ─▶ update ─▶
    journal ─▶ validate, save
                                                                                          └no▶ skipped, its cause in the
                                                                                          journal

Resuming is the only way a run starts: from step 0, or from the newest complete checkpoint. The data order is a pure
function of seed and step, so the state of a run is weights, optimizer and a few numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lmforge.allocator import memory_for
from lmforge.errors import InputError, Interrupted, LmforgeError
from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.generate.score import token_nats
from lmforge.model.config import network_of
from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh, join_mesh
from lmforge.parallel.thread_replicas import Replicas
from lmforge.plan.cost import TRAINING, training_flops_per_token
from lmforge.progress import Bar, format_duration, log
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, write_atomic
from lmforge.tokens.batch_schedule import ramp_of, with_length
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.loader import Batch, Loader, Prefetch, whole_tokens
from lmforge.tokens.mixture import at, weights_of
from lmforge.tokens.shards import Shards, verify_once
from lmforge.train import fp8
from lmforge.train.adapters import ADAPTER, adapter_tensors, averaged, hold, merged, write_adapter
from lmforge.train.autotune import ExecutionPlan, choose, compiled_loss, describe
from lmforge.train.checkpoint import Checkpoints, write_snapshot
from lmforge.train.compiling import keep_compiled_code
from lmforge.train.ensemble import Candidate, Choice, MovingAverage, snapshot_steps
from lmforge.train.finetune import example_rows, start_from
from lmforge.train.journal import Journal, Meter
from lmforge.train.optim import build_optimizers, rate, set_rate
from lmforge.train.precision import LossScaler, autocast
from lmforge.train.profile import Profile
from lmforge.train.stability import (
    MOST_NAMED,
    MOST_RETURNS,
    Diverged,
    SkippedBatches,
    Stability,
    document_ids,
    first_bad_gradient,
    first_non_finite,
)
from lmforge.train.statistics import Activations, NoiseScale, weights_and_gradients
from lmforge.train.tensorboard import EventFile
from lmforge.train.watchdog import Watchdog


def train(recipe: Recipe, tokens_dir: Path, out: Path, model_out: Path) -> dict[str, Any]:
    """Train to the end (or on from the newest checkpoint), write the chosen model to `model_out`, return the figures.

    Raises:
        InputError: shards and recipe do not fit, the corpus is smaller than one batch, a checkpoint was altered.
        Interrupted: Ctrl-C, SIGTERM or `train.max_seconds`; a checkpoint was saved.
        LmforgeError: skipping bad steps and going back did not help, a loss scale reached its floor, or the disk is
            full.
    """
    mesh = join_mesh(recipe.parallel.data)
    try:
        with (
            memory_for(recipe.train.return_memory),
            contextlib.closing(TrainingRun(recipe, tokens_dir, out, mesh)) as run,
        ):
            run.go()
            mesh.wait()
            return run.finish(model_out)
    finally:
        mesh.close()


class TrainingRun:
    """One training run on one rank: what it holds and what it does at each step."""

    def __init__(self, recipe: Recipe, tokens_dir: Path, out: Path, mesh: Mesh) -> None:
        if recipe.train.precision == "fp8":
            fp8.require(mesh.device)
        training, held_out = Shards.open(tokens_dir, "train"), Shards.open(tokens_dir, "valid")
        epoch = whole_tokens(training, recipe.tokens.context) if recipe.finetune else training.tokens
        recipe = with_length(recipe, epoch)
        self.recipe, self.mesh, self.out = recipe, mesh, out
        settings, context = recipe.train, recipe.tokens.context
        self.tokenizer_file, self.corpus = tokens_dir / "tokenizer.json", tokens_dir.parent / "corpus"
        tokenizer = Tokenizer.load(self.tokenizer_file)
        self.token_bytes = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
        self.ramp = ramp_of(recipe)
        least = min(
            [settings.batch_tokens]
            if not settings.batch_schedule
            else [tokens for _, tokens in settings.batch_schedule]
        )
        if least < mesh.world * context:
            raise InputError(
                f"train.batch_tokens: {least} is less than one row of {context} tokens for each process; raise it"
            )
        self.steps = self.ramp.steps
        self.warmup = settings.warmup if settings.warmup is not None else min(2000, math.ceil(self.steps * 0.04))
        self.save_every = settings.checkpoint_every or math.ceil(self.steps / 5)
        self.validate_every = settings.validate_every or math.ceil(self.steps / 10)
        if mesh.is_main:
            verify_once((training, held_out), out / "verified")
        self.loader = Loader(
            training,
            context,
            self.ramp,
            recipe.seed,
            "whole" if recipe.finetune else recipe.tokens.packing,  # an example that is cut teaches nothing
            weights_of(recipe, training.groups),
        )
        self.valid: tuple[Tensor, ...] = (
            example_rows(held_out, context, settings.validate_tokens, recipe.seed)
            if recipe.finetune
            else validation_rows(held_out, context, settings.validate_tokens)
        )
        wanted = self.valid[1]
        # of text that the validation rows predict
        self.valid_bytes = int(self.token_bytes[wanted[wanted >= 0].numpy()].sum())
        self.model = GPT(network_of(recipe, tokenizer.vocab_size))
        self.model.initialise(recipe.seed, settings.base_width, settings.output_multiplier)
        if recipe.finetune:
            start_from(self.model, recipe.finetune, recipe.seed)
        self.model.to(mesh.device)
        self.optimizers = build_optimizers(self.model, settings)
        self.checkpoints = Checkpoints(out / "checkpoints", settings.keep, settings.store if mesh.is_main else None)
        self.excluded = SkippedBatches(out / "excluded.json")
        self.restore()
        kept = keep_compiled_code()
        self.way = self.chosen_way()
        if self.way.precision == "fp8":
            fp8.use_fp8(self.model)
        self.compiled = compiled_loss(self.model, self.way) if self.way.compiled else None
        self.snapshots = set(snapshot_steps(self.steps, settings.ensemble)) - {self.steps}  # the last is a checkpoint
        self.watch = Watchdog(mesh.rank)
        self.deadline = time.monotonic() + (settings.max_seconds or math.inf)
        self.measuring = False  # whether the present step's statistics are wanted
        self.networks = Replicas(self.model, self.way.replicas, self.way.threads)
        self.meter = Meter(cache(self.flops_per_token), mesh.device, mesh.world if mesh.device.type == "cuda" else 1)
        if mesh.is_main:
            trained, frozen = (
                sum(p.numel() for p in self.model.parameters() if p.requires_grad is each) for each in (True, False)
            )
            sizes = " then ".join(str(rows * context) for rows in self.ramp.sizes)
            log(
                f"train: {trained:,} parameters{f' beside {frozen:,} frozen ones' if frozen else ''}, {self.steps} "
                f"steps of {sizes} tokens"
            )
            log(f"train: {describe(self.way)}" + (f"; compiled code is kept in {kept}" if self.way.compiled else ""))

    def restore(self) -> None:
        """Everything as it was at the newest checkpoint, or as it is before the first step."""
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_step": None, "best_valid": math.inf}
        if self.mesh.is_main:
            self.checkpoints.prepare()
        self.mesh.wait()
        self.state |= self.checkpoints.load_newest(self.model, self.optimizers) or {}
        self.moving = MovingAverage(self.model, self.steps) if self.recipe.train.ensemble else None
        if self.moving and self.state["step"]:
            self.moving.restore(self.checkpoints.average(self.state["step"]))
        self.stability = Stability(self.state.get("stability"), self.changes())
        self.scaler = LossScaler(self.state.get("scaler"))
        self.noise = NoiseScale(self.state.get("noise"))

    def changes(self) -> set[int]:
        """The steps at which the text drawn, or the length of rows, becomes another."""
        schedules = [self.recipe.train.context_schedule, *weights_of(self.recipe, self.loader.groups)]
        return {math.ceil(begin * self.steps) for schedule in schedules for begin, _ in schedule}

    def chosen_way(self) -> ExecutionPlan:
        """The way the run began with, so that it stays exact; measured anew at its start, on another kind of device or
        number of ranks."""
        here = [self.mesh.device.type, self.mesh.world]
        if self.state.get("way_on") != here:
            rows = max(self.ramp.sizes) // self.mesh.world
            way = choose(self.recipe, self.model, self.mesh.device, rows, self.steps, self.mesh.world)
            self.state |= {"way": dataclasses.asdict(way), "way_on": here}
        return ExecutionPlan(**self.state["way"])

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` batches, in all ranks."""
        return self.ramp.before(step) * self.recipe.tokens.context

    def context_at(self, step: int) -> int:
        """The length of rows in step `step` (from 0)."""
        return int(at(self.recipe.train.context_schedule or ((0.0, self.recipe.tokens.context),), step / self.steps))

    def flops_per_token(self, context: int) -> float:
        """Operations of a step for each token; where most weights are frozen, without the products for their
        gradients."""
        frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        return training_flops_per_token(self.model.config, context) * ((TRAINING - 1) / TRAINING if frozen else 1)

    def close(self) -> None:
        """End the threads; a checkpoint that is being written is finished first."""
        self.networks.close()
        self.checkpoints.close()

    def go(self) -> None:
        """Every step that is left."""
        with (
            stop_signals() as stop,
            self.watch,
            Bar("train", self.tokens(self.steps), "tok", self.tokens(self.state["step"])) as bar,
        ):
            while self.state["step"] < self.steps:
                try:
                    self.go_on(stop, bar)
                except Diverged as cause:
                    self.go_back(cause)

    def go_on(self, stop: threading.Event, bar: Bar) -> None:
        """The steps from the present one on.

        Raises:
            Diverged: several in a row would have harmed the network.
        """
        done = self.state["step"]
        events = (
            EventFile(self.out / "tensorboard", done) if self.mesh.is_main and self.recipe.train.tensorboard else None
        )
        journal = Journal(self.out / "metrics.jsonl", done, events) if self.mesh.is_main else None
        profile = Profile(self.out / "profile", self.recipe.train.profile if self.mesh.is_main else 0, self.mesh.device)
        data = Prefetch(self.loader, partial(self.loader.share, self.mesh.rank, self.mesh.world), done, self.steps)
        with (
            contextlib.closing(data),
            contextlib.closing(profile),
            contextlib.closing(journal) if journal else contextlib.nullcontext(),
        ):
            before, started = self.state["seconds"], time.monotonic()
            for step in range(done, self.steps):
                self.watch.doing(step + 1, "reading the batch")
                figures = self.step(step, data.take()) | {"data_wait": round(data.waited, 6)}
                seconds = before + time.monotonic() - started
                note = f"bits/byte {figures['bits_per_byte']:.3f}" if "bits_per_byte" in figures else "skipped"
                bar.step(self.tokens(step + 1) - self.tokens(step), f"step {step + 1}/{self.steps} {note}")
                self.state |= {"step": step + 1, "seconds": seconds}
                if journal:
                    journal.write(
                        step=step + 1,
                        tokens=self.tokens(step + 1),
                        seconds=round(seconds, 3),
                        **self.meter.read(bar.rate, self.context_at(step)),
                        **figures,
                    )
                profile.step_ended(step + 1)
                if "skipped" in figures:
                    self.stability.check(figures["skipped"])
                self.keep_for_averaging(step + 1)
                last = step + 1 == self.steps
                self.watch.doing(step + 1, "agreeing whether to stop")
                # all ranks at the same step
                stopping = self.mesh.total(float(stop.is_set() or time.monotonic() > self.deadline))[0] > 0
                # After a skipped step the weights themselves are not above suspicion: a checkpoint to go back to must
                # be.
                saving = last or stopping or ((step + 1) % self.save_every == 0 and not self.stability.skipped)
                if saving or self.validates_after(step):
                    self.watch.doing(step + 1, "validating")
                    self.validate(step + 1, journal)
                if saving:
                    self.watch.doing(step + 1, "saving")
                    self.save(wait=last or stopping)
                if stopping and not last:
                    raise Interrupted(
                        f"stopped after step {step + 1} of {self.steps}, saved in {self.checkpoints.path(step + 1)}; "
                        "the same command goes on from there"
                    )

    def validates_after(self, step: int) -> bool:
        """Whether validation, and the statistics that go with it, follow step `step` (from 0)."""
        return (step + 1) % self.validate_every == 0 or step + 1 == self.steps

    def go_back(self, cause: Diverged) -> None:
        """To the newest checkpoint, leaving out the batches that led away from it.

        Raises:
            LmforgeError: there is none, or going back has not helped before.
        """
        first, last = cause.steps[0] + 1, cause.steps[-1] + 1
        if self.mesh.is_main:
            self.checkpoints.resolve()
        self.mesh.wait()
        steps = self.checkpoints.steps()
        if not steps or self.excluded.returns >= MOST_RETURNS:
            tried = f" though it went back {self.excluded.returns} times" if self.excluded.returns else ""
            raise LmforgeError(
                f"train: steps {first} to {last} had to be skipped{tried}: {cause}; lower train.peak_lr or "
                f"train.matrix_lr and run again with --fresh (metrics.jsonl names documents and layers)"
            )
        self.excluded.add(cause.steps, write=self.mesh.is_main)
        self.mesh.wait()
        log(
            f"train: steps {first} to {last} had to be skipped ({cause}); back to step {steps[-1]}, without those "
            "batches"
        )
        self.restore()

    def step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update: rate, forward and backward of this rank's rows of the batch, sum over ranks, clip, update. Or,
        where the batch would harm the network, none: then the figures have `skipped`, the reason."""
        if step in self.excluded.steps:
            return {"skipped": "left out after a return to a checkpoint"}
        settings = self.recipe.train
        share = rate(step, self.steps, self.warmup, settings.final_lr, settings.schedule)
        set_rate(self.optimizers, share, 1 - step / self.steps if settings.weight_decay_schedule == "linear" else 1.0)
        context = self.context_at(step)
        self.measuring = self.validates_after(step)
        mean, counted, text_bytes, norm, few = self.gradient(step, batch, context)
        cause = self.stability.judge(step, mean, norm)
        if cause:
            self.model.zero_grad(set_to_none=True)
            return {"skipped": cause} | self.diagnose(step, batch, context, cause)
        figures = self.statistics(norm, counted, few) if self.measuring else {}
        if norm + 1e-6 > settings.clip:  # below it clipping would multiply every gradient by 1
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(), settings.clip, torch.tensor(norm, device=self.mesh.device)
            )
        self.watch.doing(step + 1, "updating the weights")
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self.way.precision == "fp16":
            figures["loss_scale"] = self.scaler.scale
            self.scaler.fitted()
        bits = mean * counted / math.log(2) / max(1, text_bytes)
        return {
            "loss": mean,
            "bits_per_byte": bits,
            "lr": self.recipe.train.peak_lr * share,
            "grad_norm": norm,
            **figures,
        }

    def gradient(
        self, step: int, batch: Batch, context: int
    ) -> tuple[float, float, float, float, list[tuple[int, float]]]:
        """The gradient of the mean loss over all that counts in the batch, in all ranks: (mean loss in nats, tokens
        that count, UTF-8 bytes of them, norm of the gradient, and of this rank's first micro-batches the tokens and the
        squared norm of their mean gradient).

        Where float16 overflows, the batch is computed again with a smaller loss scale; where six halvings do not help,
        it is not the scale.
        """
        few: list[tuple[int, float]] = []
        size = self.ramp.rows(step) * self.recipe.tokens.context
        for _ in range(7):
            few.clear()
            self.watch.doing(step + 1, "forward and backward")
            parts = self.networks.run(
                lambda network, rows: self.gradients(network, batch, rows, context, size, few), range(len(batch.inputs))
            )
            self.watch.doing(step + 1, "summing gradients over ranks")
            self.mesh.sum_gradients(self.model.parameters())
            losses, *counts = zip(*parts, strict=True)
            loss, (text_bytes, counted) = torch.stack(losses).sum(), (float(sum(column)) for column in counts)
            if self.mesh.world > 1:
                nats, text_bytes, counted = self.mesh.total(float(loss), text_bytes, counted)
                loss = torch.tensor(nats, dtype=loss.dtype, device=loss.device)
            if self.way.precision == "fp16":
                self.scaler.unscale(self.model.parameters())
            if counted != size:  # some tokens do not count: the mean is over those that do, in all ranks
                self._rescale(size / max(1.0, counted))
            nats, norm = to_host(
                loss, torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            )
            if self.way.precision != "fp16" or not math.isfinite(nats) or math.isfinite(norm):
                break
            log(
                f"train: step {step + 1}: float16 overflows at a loss scale of {self.scaler.scale:g}, first in the "
                "gradient of "
                f"{first_bad_gradient(self.model)}; the batch again with half of it"
            )
            self.scaler.overflowed(step)
            self.model.zero_grad(set_to_none=True)
        return nats / max(1.0, counted), counted, text_bytes, norm, few

    def _rescale(self, factor: float) -> None:
        """Gradients of a mean over the batch's tokens become those of a mean over the ones that count."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def gradients(
        self,
        network: nn.Module,
        batch: Batch,
        rows: range,
        context: int,
        tokens: int,
        few: list[tuple[int, float]],
    ) -> tuple[Tensor, int, int]:
        """Forward and backward of some rows of the batch, which has `tokens` tokens in all ranks, in micro-batches,
        each row cut to `context`; their loss in nats, still on the device, and the UTF-8 bytes and the number of the
        tokens that count in it. Notes in `few` the first micro-batch's tokens and squared gradient."""
        size = max(1, self.way.micro_batch_tokens // self.recipe.tokens.context)
        scale = self.scaler.scale if self.way.precision == "fp16" else 1.0
        nats = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        text_bytes = counted = 0
        for first in range(rows.start, rows.stop, size):
            part = batch.part(first, min(size, rows.stop - first)).cut(context)
            counting = part.targets[part.targets >= 0]
            text_bytes, counted = text_bytes + int(self.token_bytes[counting].sum()), counted + len(counting)
            with autocast(self.way.precision, self.mesh.device):
                loss = (self.compiled or network.loss)(*self.on_device(part))  # type: ignore[operator]
            # Divided by the batch's tokens in all ranks, so that neither micro-batches, replicas nor ranks change the
            # gradient.
            (loss * (scale / tokens)).backward()
            nats += loss.detach()
            if self.measuring and first == rows.start and len(part.inputs) * context < tokens:
                unit = tokens / (scale * max(1, counted))  # to the gradient of the mean over these tokens
                few.append(
                    (
                        counted,
                        sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None) * unit**2,
                    )
                )
        return nats, text_bytes, counted

    def diagnose(self, step: int, batch: Batch, context: int, cause: str) -> dict[str, Any]:
        """What of a skipped batch is to blame, looked for in all ranks, and said: documents, and the first layer that
        is not finite.

        Documents are those of the rows whose loss is not finite, or else of the three rows with the largest loss.
        """

        def loss(row: int) -> Tensor:
            with autocast(self.way.precision, self.mesh.device):
                value: Tensor = self.model.loss(*self.on_device(batch.part(row, 1).cut(context)))
            return value

        with torch.no_grad():
            losses = [float(loss(row)) for row in range(len(batch.inputs))]
        bad = [row for row, nats in enumerate(losses) if not math.isfinite(nats)]
        worst = bad or sorted(range(len(losses)), key=losses.__getitem__, reverse=True)[:3]
        layer = None
        if "times that" not in cause:
            found = (first_non_finite(self.model, partial(loss, row)) for row in (bad or range(len(losses))))
            layer = next((each for each in found if not each.startswith("nothing")), None)
        first = self.loader.share(self.mesh.rank, self.mesh.world, step).start
        numbers = sorted({int(number) for row in worst for number in self.loader.documents(step, first + row)})
        found_in = self.mesh.gather({"numbers": numbers, "bad": bool(bad), "layer": layer})
        guilty = [each for each in found_in if each["bad"]] or found_in
        layer = next((each["layer"] for each in guilty if each["layer"]), None)
        names = document_ids(
            self.corpus,
            self.loader.shards,
            sorted({number for each in guilty for number in each["numbers"]})[:MOST_NAMED],
        )
        if self.mesh.is_main:
            log(
                f"train: step {step + 1} skipped: {cause}; documents {', '.join(names)}"
                + (f"; first not finite: {layer}" if layer else "")
            )
        return {"documents": names, "layer": layer}

    def statistics(self, norm: float, counted: float, few: list[tuple[int, float]]) -> dict[str, Any]:
        """Sizes of weights and gradients by layer, and the noise of the gradient where the batch was computed in
        parts."""
        if few and (tokens := sum(count for count, _ in few) / len(few)) < counted:
            self.noise.add(tokens, sum(square for _, square in few) / len(few), counted, norm**2)
        return {"noise_scale_tokens": self.noise.tokens, "layers": weights_and_gradients(self.model)}

    def on_device(self, part: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets, documents as tensors where the network is."""
        tokens, wanted = (
            torch.from_numpy(part.inputs).to(self.mesh.device),
            torch.from_numpy(part.targets).to(self.mesh.device),
        )
        return tokens, wanted, None if part.documents is None else torch.from_numpy(part.documents).to(self.mesh.device)

    def validate(self, step: int, journal: Journal | None) -> None:
        """Bits per byte of the fixed validation rows; remembers it for the next checkpoint."""
        with Activations(self.model) as activations:
            self.state["valid"] = float(self.nats().double().sum()) / math.log(2) / max(1, self.valid_bytes)
        if journal:
            journal.write(
                step=step,
                tokens=self.tokens(step),
                valid_bits_per_byte=self.state["valid"],
                activations=activations.found,
            )

    def nats(self) -> Tensor:
        """−ln p of each validation token under the weights as they are, (R, context); 0 where a token does not
        count."""

        def work(network: nn.Module, rows: range) -> list[Tensor]:
            found = []
            with autocast(self.way.precision, self.mesh.device):
                for first in range(rows.start, rows.stop, 16):
                    inputs, targets, *documents = (
                        each[first : min(first + 16, rows.stop)].to(self.mesh.device) for each in self.valid
                    )
                    packed = documents[0] if documents else None
                    found.append(token_nats(network, inputs, targets, documents=packed).cpu())  # type: ignore[arg-type]
            return found

        return torch.cat([piece for part in self.networks.run(work, range(len(self.valid[0]))) for piece in part])

    def keep_for_averaging(self, step: int) -> None:
        """What the ensembles of the end need of the weights after `step` steps."""
        if self.moving:
            self.moving.update(step)
        if step in self.snapshots and self.mesh.is_main:
            write_snapshot(self.snapshot(step), self.model, step, self.tokenizer_file)

    def snapshot(self, step: int) -> Path:
        """Where the weights of a step stand alone."""
        return self.out / "snapshots" / self.checkpoints.path(step).name

    def saved(self, step: int) -> Path:
        """Where the weights of a step that was kept are."""
        return self.snapshot(step) if step in self.snapshots else self.checkpoints.path(step)

    def save(self, wait: bool) -> None:
        """Checkpoint now, or from now on while the steps go on; the best so far is remembered in it."""
        if self.state["valid"] < self.state["best_valid"]:
            self.state |= {"best_step": self.state["step"], "best_valid": self.state["valid"]}
        self.state |= {"stability": self.stability.state, "scaler": self.scaler.state, "noise": self.noise.state}
        if self.mesh.is_main:
            average = self.moving.weights if self.moving else None
            self.checkpoints.save(
                self.state["step"], self.model, self.optimizers, self.state, self.tokenizer_file, average, wait
            )
        self.mesh.wait()

    def finish(self, model_out: Path) -> dict[str, Any]:
        """Write the best weights that the run's checkpoints and averages give as the model; the figures of the whole
        run."""
        table = self.out / "ensemble.json"
        if self.mesh.is_main:
            best, weights, candidates = self.choose()
            with atomic_directory(model_out) as temporary:
                write_model(
                    temporary,
                    self.model.config,
                    weights,
                    self.tokenizer_file,
                    notes={"made_from": best.row(), "valid_bits_per_byte": best.bits_per_byte},
                )
                if self.recipe.finetune and self.recipe.finetune.lora:
                    write_adapter(
                        temporary / "adapter",
                        self.adapter_of(best),
                        self.recipe.finetune.base,
                        self.recipe.finetune.lora,
                    )
            write_atomic(
                table,
                json.dumps({"chosen": best.name, "candidates": [each.row() for each in candidates]}, indent=1) + "\n",
            )
        self.mesh.wait()
        tensors = model_tensors(load_model(model_out))
        ensemble = json.loads(table.read_text())
        seconds, tokens = self.state["seconds"], self.tokens(self.steps)
        chosen = next(each for each in ensemble["candidates"] if each["name"] == ensemble["chosen"])
        log(
            f"train: {format_duration(seconds)}, {chosen['bits_per_byte']:.4f} bits per byte of validation text with "
            f"{chosen['name']}"
        )
        return {
            "steps": self.steps,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "valid_bits_per_byte": chosen["bits_per_byte"],
            "weights_sha256": hash_weights(tensors),
            "best_step": self.state["best_step"],
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "way": describe(self.way),
            **ensemble,
            "trained_parameters": sum(
                parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad
            ),
        }

    def adapter_of(self, chosen: Candidate) -> dict[str, Tensor]:
        """The adapter that gives the chosen model."""
        if not chosen.members:
            assert self.moving
            return self.moving.weights
        return averaged([load_file(self.saved(step) / ADAPTER) for step in chosen.members])

    def choose(self) -> tuple[Candidate, dict[str, Tensor], list[Candidate]]:
        """The best candidate, its weights, and all of them. Afterwards the network holds some candidate's weights."""

        def score(weights: dict[str, Tensor]) -> Tensor:
            hold(self.model, weights)
            return self.nats()

        last = {self.steps} if self.recipe.train.ensemble else set()
        choice = Choice(lambda step: model_tensors(load_model(self.saved(step))), score, self.valid_bytes)
        moving = None
        if self.moving:
            weights = {name: weight.cpu() for name, weight in self.moving.weights.items()}
            moving = (
                merged(self.model, weights) if adapter_tensors(self.model) else {**model_tensors(self.model), **weights}
            )
        best, weights = choice.choose([*({self.state["best_step"]} | last | self.snapshots)], moving)
        return best, weights, choice.table


def to_host(*numbers: Tensor) -> list[float]:
    """Numbers of the device, in one copy: the host waits for it once."""
    values: list[float] = torch.stack([number.double() for number in numbers]).tolist()
    return values


def hash_weights(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def validation_rows(shards: Shards, context: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows (R, context) spread evenly over the validation split, with targets; R = tokens/context or as many as there
    are."""
    available = (shards.tokens - 1) // context
    rows = max(1, min(available, tokens // context))
    starts = [row * available // rows * context for row in range(rows)]
    stacked = torch.from_numpy(np.stack([shards.read(start, context + 1) for start in starts]))
    targets = stacked[:, 1:].clone()
    for row, start in enumerate(starts):  # which document comes next is not language
        targets[row, shards.document_starts(start + 1, start + context + 1) - start - 1] = -1
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
        log("train: finishing this step, then saving (again to stop at once)")
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
