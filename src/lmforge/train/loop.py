"""Shards + network → checkpoints → the chosen model.

    for step: batch(step) ─▶ train_step ─▶ journal ─▶ keep for averaging ─▶ validate, save (when due) ─▶ stop asked?
                                 └ skipped, several in a row ─▶ back to the newest checkpoint, without those batches
    at the end: select ─▶ model/

Resuming is the only way a run starts: from step 0, or from the newest complete checkpoint. The data order is a pure
function of seed and step, so the state of a run is weights, optimizer and a few numbers (`state`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from lmforge.allocator import memory_for
from lmforge.errors import InputError, Interrupted, LmforgeError
from lmforge.formats.native import load_model, model_tensors, read_config
from lmforge.model.config import network_of
from lmforge.model.gpt import GPT
from lmforge.model.room import with_room
from lmforge.parallel.layout import Layout, join_layout
from lmforge.plan.auto import with_chosen_layout
from lmforge.plan.cost import TRAINING, training_flops_per_token
from lmforge.progress import Bar, format_duration, log, log_once
from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import with_length
from lmforge.tokens.loader import Prefetch
from lmforge.tokens.mixture import weights_of
from lmforge.tokens.shards import verify_once
from lmforge.train import fp8
from lmforge.train.advice import base_advice, label_advice, length_advice
from lmforge.train.autotune import ExecutionPlan, choose, compiled_loss, describe
from lmforge.train.base import base_of, take_base
from lmforge.train.checkpoint import Checkpoints, optimizer_tensors
from lmforge.train.compiling import keep_compiled_code
from lmforge.train.data import TrainingData
from lmforge.train.diagnose import Diagnosis
from lmforge.train.finetune import start_from
from lmforge.train.interrupt import StopRequest, stop_signals
from lmforge.train.journal import Journal, Meter, Observers
from lmforge.train.objective import objective_of
from lmforge.train.optim import build_optimizers
from lmforge.train.origin import keep_origin
from lmforge.train.out_of_memory import out_of_memory_told
from lmforge.train.precision import LossScaler
from lmforge.train.profile import Profile
from lmforge.train.schedule import TrainingSchedule
from lmforge.train.select import Selection, hash_weights
from lmforge.train.stability import MOST_RETURNS, Diverged, SkippedBatches, Stability
from lmforge.train.state import TrainState
from lmforge.train.statistics import NoiseScale
from lmforge.train.step import StepParts, TrainStep
from lmforge.train.tensorboard import EventFile
from lmforge.train.validate import Validator
from lmforge.train.watchdog import Watchdog


def train(recipe: Recipe, tokens_dir: Path, out: Path, model_out: Path) -> dict[str, Any]:
    """Train to the end (or on from the newest checkpoint), write the chosen model to `model_out`, return the figures.

    Raises:
        InputError: shards and recipe do not fit, the corpus is smaller than one batch, a checkpoint was altered.
        Interrupted: Ctrl-C, SIGTERM or `train.max_seconds`; a checkpoint was saved.
        LmforgeError: skipping bad steps and going back did not help, a loss scale reached its floor, or the disk is
            full.
        DoesNotFit: memory ran out; a table of what was planned and measured has been printed.
    """
    if recipe.model.base and recipe.train.steps == 0:
        return take_base(recipe, tokens_dir, out, model_out)
    recipe = with_chosen_layout(recipe)
    layout = join_layout(recipe.parallel)
    try:
        with (
            memory_for(recipe.train.return_memory),
            out_of_memory_told(recipe, layout.device) as watched,
            contextlib.closing(Trainer(recipe, tokens_dir, out, layout)) as trainer,
        ):
            watched.training = trainer
            trainer.train()
            layout.wait()
            return trainer.finish(model_out)
    finally:
        layout.close()


class Trainer:
    """One training run on one rank: its parts, and the order in which they act."""

    def __init__(self, recipe: Recipe, tokens_dir: Path, out: Path, layout: Layout) -> None:
        if recipe.train.precision == "fp8":
            fp8.require(layout.device)
        self.layout, self.out, self.data = layout, out, TrainingData(tokens_dir)
        self.recipe = recipe = with_length(recipe, self.data.epoch_tokens(recipe))
        self.schedule = schedule = TrainingSchedule(recipe, layout.data_size)
        layout.check(recipe, schedule.ramp.sizes)
        layout.on_main(lambda: verify_once((self.data.training, self.data.held_out), out / "verified"))
        self.loader, rows = self.data.loader(recipe, schedule.ramp), self.data.validation(recipe)
        self.model = laid_out(recipe, self.data.vocab_size, layout, out if layout.is_main else None)
        self.optimizers = build_optimizers(self.model, recipe.train, layout)
        store = recipe.train.store if layout.is_main else None
        self.checkpoints = Checkpoints(out / "checkpoints", recipe.train.keep, store)
        layout.on_main(self.checkpoints.sweep)
        stability = Stability(schedule.changes(weights_of(recipe, self.loader.groups)))
        scaler, noise = LossScaler(), NoiseScale()
        self.state = TrainState({"stability": stability, "scaler": scaler, "noise": noise})
        self.selection = Selection(
            layout, self.model, recipe, schedule.steps, self.checkpoints, self.data.tokenizer_file
        )
        self.restore()
        kept = keep_compiled_code()
        plan = self.execution_plan()
        if plan.precision == "fp8":
            fp8.use_fp8(self.model)
        compiled = compiled_loss(self.model, plan) if plan.compiled else None
        layout.prepare(plan.replicas, plan.threads)
        text_bytes, objective = rows.text_bytes(self.data.token_bytes), objective_of(recipe.train)
        self.validator = Validator(layout, self.model, rows, text_bytes, plan.precision, objective)
        parts = StepParts(
            stability,
            scaler,
            noise,
            SkippedBatches(out / "excluded.json"),
            Diagnosis(layout, self.model, self.loader, self.data.corpus),
            Watchdog(layout.rank),
        )
        self.step = TrainStep(
            layout, self.model, self.optimizers, schedule, plan, self.data.token_bytes, parts, compiled
        )
        self.introduce(f"; compiled code is kept in {kept}" if plan.compiled else "")

    def introduce(self, more: str) -> None:
        """Say what is going to be trained and how, and before the first step what speaks against it."""
        advice = [] if self.state.step else [*self.advice()]
        if not self.layout.is_main:
            return
        trained, frozen = self.layout.parameter_counts(self.model)
        sizes = " then ".join(str(rows * self.schedule.context) for rows in self.schedule.ramp.sizes)
        log(
            f"train: {trained:,} parameters{f' beside {frozen:,} frozen ones' if frozen else ''}, "
            f"{self.schedule.steps} steps of {sizes} tokens"
        )
        log(f"train: {describe(self.step.plan)}{more}")
        for line in advice:
            log(f"train: warning: {line}")

    def advice(self) -> Iterator[str]:
        """What will keep this training from learning."""
        yield from length_advice(self.recipe, self.schedule, self.data.training.tokens)
        yield from label_advice(self.recipe, self.data.corpus)
        yield from base_advice(self.recipe, self.validator, self.data.vocab_size)

    def restore(self) -> None:
        """Everything as it was at the newest checkpoint, or as it is before the first step; alike in all ranks."""
        self.layout.on_main(self.checkpoints.prepare)
        state = self.checkpoints.load_newest(self.model, self.optimizers, self.layout)
        self.state.load_state_dict(state or {})
        steps = self.layout.gather(self.state.step)
        if len({*steps}) > 1:
            raise InputError(
                f"{self.checkpoints.directory}: ranks go on from different steps ({', '.join(map(str, steps))}); all "
                "machines must see the same run_dir"
            )
        self.selection.restore(self.state.step)

    def execution_plan(self) -> ExecutionPlan:
        """How the run began to be executed, so that it stays exact; chosen anew at its start, on another kind of device
        or number of ranks, and where the recipe now states another one. The main rank chooses."""
        layout, stated = self.layout, self.recipe.train
        here = [layout.device.type, layout.world, stated.threads, stated.micro_batch_tokens, stated.compile]
        before = self.state.plan_on or []  # older checkpoints do not hold what was stated
        rows, steps = max(self.schedule.ramp.sizes) // layout.data_size, self.schedule.steps

        def chosen() -> dict[str, Any]:
            return dataclasses.asdict(choose(self.recipe, self.model, layout.device, rows, steps, layout.world))

        if self.state.plan is None or not before or before != here[: len(before)]:
            self.state.plan, self.state.plan_on = ExecutionPlan(**layout.on_main(chosen)), here
        return self.state.plan

    def flops_per_token(self, context: int) -> float:
        """Operations of a step for each token; where most weights are frozen, without the products for their
        gradients."""
        frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        return training_flops_per_token(self.model.config, context) * ((TRAINING - 1) / TRAINING if frozen else 1)

    def close(self) -> None:
        """End the threads; a checkpoint that is being written is finished first."""
        self.checkpoints.close()

    def train(self) -> None:
        """Every step that is left."""
        tokens = self.schedule.tokens
        with (
            stop_signals() as asked,
            self.step.parts.watch,
            self.layout.watching(self.step.parts.watch.where),
            Bar("train", tokens(self.schedule.steps), "tok", tokens(self.state.step)) as bar,
        ):
            stop = StopRequest(asked, self.recipe.train.max_seconds)
            while self.state.step < self.schedule.steps:
                try:
                    self.train_on(stop, bar)
                except Diverged as cause:
                    self.go_back(cause)

    def train_on(self, stop: StopRequest, bar: Bar) -> None:
        """The steps from the present one on.

        Raises:
            Diverged: several in a row would have harmed the network.
            Interrupted: it was asked to stop; a checkpoint was saved.
        """
        first, steps, watch = self.state.step, self.schedule.steps, self.step.parts.watch
        with self.observers(first, bar) as observers, contextlib.closing(self.batches(first)) as batches:
            before, started = self.state.seconds, time.monotonic()
            for step in range(first, steps):
                watch.doing(step + 1, "reading the batch")
                batch = batches.take()
                figures = self.step.run(step, batch) | {"data_wait": round(batches.waited, 6)}
                self.state.step, self.state.seconds = step + 1, before + time.monotonic() - started
                observers.step_ended(step, self.state.seconds, figures)
                if "skipped" in figures:
                    self.step.parts.stability.check(figures["skipped"])
                self.selection.keep(step + 1)
                last = step + 1 == steps
                watch.doing(step + 1, "agreeing whether to stop")
                stopping = stop.agreed(self.layout)
                # After a skipped step the weights themselves are not above suspicion: a checkpoint to go back to must
                # be.
                due = self.schedule.saves_after(step) and not self.step.parts.stability.skipped
                if last or stopping or due or self.schedule.validates_after(step):
                    watch.doing(step + 1, "validating")
                    self.validate(step + 1, observers.journal)
                if last or stopping or due:
                    watch.doing(step + 1, "saving")
                    self.save(wait=last or stopping)
                if stopping and not last:
                    raise Interrupted(
                        f"stopped after step {step + 1} of {steps}, saved in {self.checkpoints.path(step + 1)}; "
                        "the same command goes on from there"
                    )

    def batches(self, first: int) -> Prefetch:
        """This rank's rows of the batches from step `first` on."""
        rows = partial(self.loader.share, self.layout.data_rank, self.layout.data_size)
        return Prefetch(self.loader, rows, first, self.schedule.steps)

    @contextlib.contextmanager
    def observers(self, first: int, bar: Bar) -> Iterator[Observers]:
        """What tells of the steps from `first` on; files are the main rank's."""
        layout, settings = self.layout, self.recipe.train
        events = EventFile(self.out / "tensorboard", first) if layout.is_main and settings.tensorboard else None
        profile = Profile(self.out / "profile", settings.profile if layout.is_main else 0, layout.device)
        devices = layout.world if layout.device.type == "cuda" else 1
        meter = Meter(cache(self.flops_per_token), layout.device, devices)
        with contextlib.closing(profile), contextlib.ExitStack() as stack:
            journal = Journal(self.out / "metrics.jsonl", first, events) if layout.is_main else None
            if journal:
                stack.callback(journal.close)
            yield Observers(self.schedule, bar, journal, meter, profile)

    def go_back(self, cause: Diverged) -> None:
        """To the newest checkpoint, leaving out the batches that led away from it.

        Raises:
            LmforgeError: there is none, or going back has not helped before.
        """
        first, last, excluded = cause.steps[0] + 1, cause.steps[-1] + 1, self.step.parts.excluded
        self.layout.on_main(self.checkpoints.resolve)
        steps = self.checkpoints.steps()
        if not steps or excluded.returns >= MOST_RETURNS:
            tried = f" though it went back {excluded.returns} times" if excluded.returns else ""
            raise LmforgeError(
                f"train: steps {first} to {last} had to be skipped{tried}: {cause}; lower train.peak_lr or "
                f"train.matrix_lr and run again with --fresh (metrics.jsonl names documents and layers)"
            )
        excluded.add(cause.steps, write=self.layout.is_main)
        self.layout.wait()
        log_once(
            f"train: steps {first} to {last} had to be skipped ({cause}); back to step {steps[-1]}, without those "
            "batches"
        )
        self.restore()

    def validate(self, step: int, journal: Journal | None) -> None:
        """Bits per byte of the fixed validation rows; remembered for the next checkpoint."""
        self.state.valid, activations = self.validator.bits_per_byte()
        if journal:
            journal.write(
                step=step,
                tokens=self.schedule.tokens(step),
                valid_bits_per_byte=self.state.valid,
                activations=activations,
            )

    def save(self, wait: bool) -> None:
        """Checkpoint now, or from now on while the steps go on; the best so far is remembered in it."""
        self.state.note_validation()
        weights = self.layout.full_state(self.model)
        moments, average = optimizer_tensors(self.model, self.optimizers, self.layout), self.selection.average()

        def write() -> None:
            self.checkpoints.save(
                self.state.step,
                self.model,
                self.optimizers,
                self.state.state_dict(),
                self.data.tokenizer_file,
                average,
                wait,
                weights,
                moments,
            )

        self.layout.on_main(write)

    def finish(self, model_out: Path) -> dict[str, Any]:
        """Write the best weights that the run's checkpoints and averages give as the model; the figures of the whole
        run."""
        assert self.state.best_step is not None  # the last step was saved
        table = self.selection.write(model_out, self.state.best_step, self.validator)
        tensors = model_tensors(load_model(model_out))
        seconds, tokens = self.state.seconds, self.schedule.tokens(self.schedule.steps)
        chosen = next(each for each in table["candidates"] if each["name"] == table["chosen"])
        log_once(
            f"train: {format_duration(seconds)}, {chosen['bits_per_byte']:.4f} bits per byte of validation text with "
            f"{chosen['name']}"
        )
        return {
            "steps": self.schedule.steps,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "valid_bits_per_byte": chosen["bits_per_byte"],
            "weights_sha256": hash_weights(tensors),
            "best_step": self.state.best_step,
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "way": describe(self.step.plan),
            **table,
            "trained_parameters": self.layout.parameter_counts(self.model)[0],
        }


def by_index(recipe: Recipe) -> bool:
    """Whether a network's first values are drawn where they lie, by their index."""
    return recipe.train.initialisation == "by_index" and not recipe.model.base and not recipe.finetune


def laid_out(recipe: Recipe, vocab_size: int, layout: Layout, out: Path | None = None) -> GPT:
    """What this process holds of the network before its first step."""
    model = layout.apply(whole_network(recipe, vocab_size, out))
    if by_index(recipe):
        layout.initialise(model, recipe.seed, recipe.train.base_width, recipe.train.output_multiplier)
    return model


def whole_network(recipe: Recipe, vocab_size: int, out: Path | None = None) -> GPT:
    """The network before its first step, the same in every process: initialised, or that which is gone on from."""
    if recipe.model.base:
        base = base_of(recipe)
        if out is not None:
            keep_origin(out, base.notes)
        return base.model
    network = network_of(recipe, vocab_size)
    if by_index(recipe):
        return with_room(network)  # its values are drawn when it is laid out
    model = GPT(network)
    model.initialise(recipe.seed, recipe.train.base_width, recipe.train.output_multiplier)
    if recipe.finetune:
        if out is not None:
            keep_origin(out, read_config(recipe.finetune.base).get("notes", {}))
        start_from(model, recipe.finetune, recipe.seed)
    return model
