"""Which stages are stale, and running them in order.

A stage's key is the hash of what of the recipe it depends on, its inputs' content hashes and its format version. It is
done when the record holds that part and those inputs, and its outputs are still what it wrote. Changing a key of the
recipe so reruns only what depends on it.

Under a launcher with several ranks rank 0 alone decides, works and speaks; the others wait for it, without a limit of
time, and take part where a stage is collective.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmforge.errors import DoesNotFit, InputError
from lmforge.model.config import network_of
from lmforge.parallel import agree
from lmforge.pipeline.checkpoints import is_trained as has_ended
from lmforge.pipeline.stages import NAMES, STAGES, Stage, makers, stage_named
from lmforge.pipeline.state import Recorded, State, key_of, why_stale
from lmforge.plan.hardware import detect
from lmforge.plan.simulate import plan
from lmforge.progress import format_duration, log
from lmforge.recipe import Recipe, load_recipe, parse_recipe, to_toml
from lmforge.record import Record, content_hash, hash_file, sweep_run, write_atomic


def states(recipe: Recipe, run: Path) -> list[State]:
    """Every stage's state, in order. A stage after one that is not done is not done either."""
    record = Record(run)
    known: dict[str, State] = {}
    for stage in STAGES:
        before = [known[maker.name] for maker in makers(stage.needs)]
        known[stage.name] = _state(stage, recipe, run, record.stages.get(stage.name), before)
    return list(known.values())


def _state(stage: Stage, recipe: Recipe, run: Path, entry: dict[str, Any] | None, before: list[State]) -> State:
    part = stage.part(recipe)
    inputs = {**{path: _output_hash(run / path) or "missing" for path in stage.needs}, **stage.inputs(recipe)}
    if entry is None:
        return State(stage.name, "missing", key_of(stage.name, stage.format, part, inputs), part, inputs, None, {})
    recorded = Recorded.of(stage.name, stage.format, entry)
    inputs, gone = recorded.completed(inputs)
    behind = [state.name for state in before if state.state != "done"]
    lost = [path for path, digest in entry["outputs"].items() if _output_hash(run / path) != digest]
    why = (
        f"{', '.join(lost)} is not whole"
        if lost
        else why_stale(recorded, part, inputs) or (f"after {', '.join(behind)}" if behind else "")
    )
    # an unchanged stage keeps the key it was recorded with, whatever version of lmforge reckoned it
    same = not why_stale(recorded, part, inputs)
    key = entry["key"] if same else key_of(stage.name, stage.format, part, inputs)
    state = "stale" if why else "done"
    return State(stage.name, state, key, part, inputs, entry["seconds"], entry["figures"], why, gone)


def _output_hash(path: Path) -> str | None:
    """The content hash of a complete directory or of a single file; None when it is not (wholly) there."""
    if path.is_dir():
        return content_hash(path)
    return hash_file(path) if path.is_file() else None


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run for this process alone.

    Raises:
        InputError: another process works on it, or the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as error:
        raise InputError(
            f"{run}: no permission to write there; choose another run_dir or change its permissions"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{run}: a file stands where the run's folder should be; choose another run_dir or move it away"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{run}: another lmforge process works on this run; wait for it or choose another name"
            ) from error
        yield
    finally:
        os.close(handle)


def run_stages(
    recipe: Recipe, run: Path, until: str | None = None, only: str | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Bring a run up to date: every stage that is not done, in order, up to `until`; or `only` that one.

    `fresh` does what is asked for again from nothing. Returns `{stage: figures}` with `seconds` and `was` (the state
    that it was in); nothing on ranks other than 0, which take part where they are needed.

    Raises:
        InputError: what `only` needs is not there yet (names the stage to run first), or the input is wrong.
        DoesNotFit: training is asked for and needs more memory than there is.
    """
    # a network that cannot be is refused before hours of work on its texts
    network_of(recipe, recipe.tokens.vocab_size)
    wanted = [only] if only else list(NAMES[: NAMES.index(until) + 1 if until else None])
    results: dict[str, Any] = {}
    known: dict[str, State] = {}  # on rank 0: reckoned anew when a stage has run, not for each one that has not to
    with contextlib.ExitStack() as held:
        agree.on_main(lambda: _open(recipe, run, wanted, held))
        for name in wanted:
            _bring_up_to_date(stage_named(name), recipe, run, fresh, known, results)
    return results


def _open(recipe: Recipe, run: Path, wanted: list[str], held: contextlib.ExitStack) -> None:
    if any(stage_named(name).collective for name in wanted):
        refuse_what_does_not_fit(recipe)
    held.enter_context(locked(run))
    sweep_run(run)
    write_atomic(run / "recipe.toml", to_toml(recipe))


def refuse_what_does_not_fit(recipe: Recipe) -> None:
    """Raises:
    DoesNotFit: training would need more memory than this machine has; says how much.
    """
    if recipe.train.steps == 0:
        return  # nothing is trained
    figures = plan(recipe, detect(measure=False))
    if not figures["fits"]:
        need = sum(figures["memory_bytes_per_device"].values()) / 2**30
        raise DoesNotFit(
            f"{recipe.name}: training needs about {need:,.1f} GiB on each device, more than this machine has; "
            "lower model.layers, model.d_model or tokens.vocab_size (lmforge plan shows each part)"
        )


def _bring_up_to_date(
    stage: Stage, recipe: Recipe, run: Path, fresh: bool, known: dict[str, State], results: dict[str, Any]
) -> None:
    """On every rank; `results` gains what rank 0 knows of it. `known`: the states of all stages, empty where they have
    to be reckoned."""
    begun: list[tuple[State, float]] = []  # on rank 0

    def begin() -> bool:
        if not known:
            known.update({state.name: state for state in states(recipe, run)})
        state = _state_to_run(stage, run, known)
        if state.state == "done" and not fresh:
            results[stage.name] = {**state.figures, "stage_seconds": state.seconds, "was": "done"}
            return False
        log(f"── {stage.name}" + (f" (again: {state.why})" if state.state == "stale" else ""))
        stage.reset(recipe, run, state, fresh)
        begun.append((state, time.monotonic()))
        if not stage.collective:
            end(stage.run(recipe, run))
        return stage.collective

    def end(figures: dict[str, Any]) -> None:
        for state, started in begun:
            seconds = time.monotonic() - started
            _enter(stage, recipe, run, state, seconds, figures)
            known.clear()
            results[stage.name] = {**figures, "stage_seconds": round(seconds, 3), "was": state.state}

    if agree.on_main(begin):
        figures = stage.run(recipe, run)
        agree.on_main(lambda: end(figures))


def _state_to_run(stage: Stage, run: Path, by_name: dict[str, State]) -> State:
    """The stage's state, by those of all.

    Raises:
        InputError: a stage that it needs is not done.
    """
    for maker in makers(stage.needs):
        if by_name[maker.name].state != "done":
            raise InputError(
                f"{run}: stage '{stage.name}' needs '{maker.name}', which is {by_name[maker.name].state}; run: lmforge "
                f"{maker.name} RECIPE"
            )
    return by_name[stage.name]


def _enter(stage: Stage, recipe: Recipe, run: Path, state: State, seconds: float, figures: dict[str, Any]) -> None:
    Record(run).enter(
        stage.name,
        key=state.key,
        inputs=state.inputs,
        recipe=state.part,
        seed=recipe.seed,
        seconds=seconds,
        outputs={path: _output_hash(run / path) or "" for path in stage.makes},
        figures=figures,
    )
    log(f"   {stage.name}: {format_duration(seconds)}")


def is_trained(run: Path) -> bool:
    """Whether the training of a run has ended, by its record."""
    return has_ended(run, Record(run).stages.get("train"))


def find_recipe(run: Path) -> Recipe:
    """The resolved recipe that a run was made with, also when the base that it fine-tunes is gone.

    Raises:
        InputError: no run there, or its recipe was altered.
    """
    path = run / "recipe.toml"
    if not path.exists():
        raise InputError(f"{run}: no run here (recipe.toml is missing); give the folder of a run, such as runs/laptop")
    try:
        return load_recipe(path)
    except InputError:
        # a resolved recipe states by itself all that was taken from its base
        recipe = _as_written(path)
        if recipe is None or recipe.finetune is None or recipe.finetune.base.exists():
            raise
        return recipe


def _as_written(path: Path) -> Recipe | None:
    with contextlib.suppress(InputError, OSError, ValueError):
        return parse_recipe(tomllib.loads(path.read_text(encoding="utf-8")))
    return None
