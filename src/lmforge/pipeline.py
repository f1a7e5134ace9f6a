"""Which stages are stale, and running them in order.

    corpus ─▶ tokens ─▶ train ─▶ compress ─▶ evaluate ─▶ report

A stage's key is the hash of its part of the recipe, its inputs' content hashes and its format version. It is done when
the record holds that key and its outputs are still what it wrote. Changing a key of the recipe so reruns only what
depends on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmforge.compress.chain import compress
from lmforge.corpus.build import ELSEWHERE, build_corpus, work_folder
from lmforge.corpus.clean.filters import filters_fingerprint
from lmforge.corpus.labelled import build_examples
from lmforge.corpus.overlap.decontaminate import benchmark_files
from lmforge.corpus.sources.kinds import fingerprint
from lmforge.corpus.synthesize.translate import Translate
from lmforge.errors import InputError
from lmforge.evaluate.harness import benchmark_texts, evaluate
from lmforge.evaluate.language import quick_bits_per_byte
from lmforge.generate import translator
from lmforge.generate.translator import HubTranslator, Translator
from lmforge.model.config import network_of
from lmforge.progress import format_duration, log
from lmforge.recipe import BackTranslation, Recipe, load_recipe, to_toml
from lmforge.record import Record, content_hash, hash_file, hash_json, sweep_temporaries, write_atomic
from lmforge.report.page import write_report
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.chat import render_conversation
from lmforge.tokens.loader import Loader
from lmforge.tokens.mixture import curricula
from lmforge.tokens.shards import TOKENIZER, Shards
from lmforge.train.adapters import fingerprint as base_fingerprint
from lmforge.train.loop import train

CALIBRATION_ROWS = 32
HOW_NOT_WHAT = ("max_seconds", "store", "tensorboard", "profile")  # keys of [train] that change nothing of what is made


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: what of the recipe and which outputs of earlier stages it depends on, what it makes, and how."""

    name: str
    part: Callable[[Recipe], dict[str, Any]]
    needs: tuple[str, ...]  # outputs of earlier stages, as paths in the run
    makes: tuple[str, ...]
    run: Callable[[Recipe, Path], dict[str, Any]]
    format: int = 1


def _corpus(recipe: Recipe, run: Path) -> dict[str, Any]:
    if recipe.finetune:
        tokenizer = Tokenizer.load(recipe.finetune.base / TOKENIZER)
        return build_examples(
            recipe, run / "corpus", lambda messages: len(render_conversation(messages, tokenizer).tokens)
        )
    steps = {number: step for number, step in enumerate(recipe.corpus.synthesis) if isinstance(step, BackTranslation)}
    translators = {number: _translator(step, recipe.seed) for number, step in steps.items()}
    return build_corpus(
        recipe, run / "corpus", translators, {f"task {name}": texts for name, texts in benchmark_texts(recipe).items()}
    )


def _translator(step: BackTranslation, seed: int) -> Translate:
    if step.hub:
        return HubTranslator.load(step.hub, step.language, step.temperature, seed)
    assert step.model is not None  # the recipe's check
    return Translator.load(step.model, step.temperature, seed=seed)


def _compress(recipe: Recipe, run: Path) -> dict[str, Any]:
    context = recipe.tokens.context
    shards = Shards.open(run / "tokens", "train")
    rows = min(CALIBRATION_ROWS, max(1, shards.tokens // context - 1))
    loader = Loader(shards, context, rows, recipe.seed, recipe.tokens.packing)
    return compress(
        recipe,
        run / "model",
        run / "compressed",
        loader.batch,
        lambda model: {
            "bits_per_byte": quick_bits_per_byte(model, run / "tokens", "valid", context, recipe.train.validate_tokens)
        },
    )


def _evaluate(recipe: Recipe, run: Path) -> dict[str, Any]:
    models = {"model": run / "model", "compressed": run / "compressed"}
    figures: dict[str, Any] = evaluate(recipe, models, run / "corpus", run / "tokens", run / "scores")
    return figures


def _report(_recipe: Recipe, run: Path) -> dict[str, Any]:
    return {"page": str(write_report(run))}


def _tokens(recipe: Recipe, run: Path) -> dict[str, Any]:
    return build_tokens(
        recipe, run / "corpus", run / "tokens", recipe.finetune.base / TOKENIZER if recipe.finetune else None
    )


def _fine(recipe: Recipe, *names: str) -> dict[str, Any]:
    """Keys of [finetune] that a stage depends on, and what its base is now; nothing where there is none."""
    if not recipe.finetune:
        return {}
    return {
        "finetune": recipe.finetune.model_dump(mode="json", exclude_none=True, include={*names}),
        "base": base_fingerprint(recipe.finetune.base),
    }


STAGES = (
    Stage(
        "corpus",
        lambda r: {
            "corpus": _without(_dump(r.corpus), *ELSEWHERE),
            "seed": r.seed,
            **_fine(r, "task", "fields", "label", "labels", "instruction", "long"),
            **({"context": r.tokens.context} if r.finetune else {}),
        },
        (),
        ("corpus",),
        _corpus,
        format=3,
    ),
    Stage(
        "tokens",
        lambda r: {"tokens": _without(_dump(r.tokens), "packing", "workers"), **_fine(r)},
        ("corpus",),
        ("tokens",),
        _tokens,
        format=2,
    ),
    Stage(
        "train",
        lambda r: {
            "model": _dump(r.model),
            "train": _dump(r.train, *HOW_NOT_WHAT),
            "seed": r.seed,
            "context": r.tokens.context,
            "packing": r.tokens.packing,
            "curricula": curricula(r),
            **_fine(r, "epochs", "lora"),
        },
        ("tokens",),
        ("model",),
        lambda r, run: train(r, run / "tokens", run / "train", run / "model"),
    ),
    Stage("compress", lambda r: {"compress": _dump(r.compress)}, ("tokens", "model"), ("compressed",), _compress),
    Stage(
        "evaluate",
        lambda r: {"evaluate": _dump(r.evaluate), "seed": r.seed},
        ("corpus", "tokens", "model", "compressed"),
        ("scores",),
        _evaluate,
    ),
    Stage("report", lambda r: {}, ("corpus", "tokens", "model", "compressed", "scores"), ("report.html",), _report),
)
NAMES = tuple(stage.name for stage in STAGES)


def _dump(section: Any, *without: str) -> dict[str, Any]:
    result: dict[str, Any] = section.model_dump(mode="json", exclude_none=True, exclude={*without})
    return result


def _without(section: dict[str, Any], *names: str) -> dict[str, Any]:
    """A section less the keys that change nothing in a stage's outputs."""
    return {key: value for key, value in section.items() if key not in names}


def _output_hash(path: Path) -> str | None:
    """The content hash of a complete directory or of a single file; None when it is not (wholly) there."""
    if path.is_dir():
        return content_hash(path)
    return hash_file(path) if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class State:
    """What is known of one stage without running it."""

    name: str
    state: str  # done | stale | missing
    key: str
    inputs: dict[str, str]
    seconds: float | None
    figures: dict[str, Any]


def states(recipe: Recipe, run: Path) -> list[State]:
    """Every stage's state, in order. A stage after one that is not done is not done either."""
    record = Record(run)
    found: list[State] = []
    for stage in STAGES:
        inputs = _inputs(stage, recipe, run)
        key = _key(stage, recipe, inputs)
        entry = record.stages.get(stage.name)
        behind = [
            state for state in found if state.state != "done" and set(_stage(state.name).makes) & set(stage.needs)
        ]
        whole = entry is not None and all(
            _output_hash(run / path) == digest for path, digest in entry["outputs"].items()
        )
        state = "missing" if entry is None else "done" if whole and entry["key"] == key and not behind else "stale"
        found.append(
            State(
                stage.name, state, key, inputs, entry["seconds"] if entry else None, entry["figures"] if entry else {}
            )
        )
    return found


def _stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def _inputs(stage: Stage, recipe: Recipe, run: Path) -> dict[str, str]:
    if stage.name == "corpus":
        if recipe.finetune:
            return {
                path.name: hash_file(path) if path.is_file() else "missing"
                for path in (recipe.finetune.train, recipe.finetune.test)
                if path
            }
        sources = {f"source {i} ({source.kind})": fingerprint(source) for i, source in enumerate(recipe.corpus.sources)}
        models = {
            f"synthesis {i} (model)": translator.fingerprint(step.model)
            for i, step in enumerate(recipe.corpus.synthesis)
            if isinstance(step, BackTranslation) and step.model
        }
        benchmarks = {
            f"benchmark {file.name}": f"{file.size} {file.mtime_ns}"
            for file in benchmark_files(recipe.corpus.decontaminate)
        }
        tasks = {f"task {name} (texts kept out)": hash_json(texts) for name, texts in benchmark_texts(recipe).items()}
        return sources | models | filters_fingerprint(recipe.corpus) | benchmarks | tasks
    return {path: _output_hash(run / path) or "missing" for path in stage.needs}


def _key(stage: Stage, recipe: Recipe, inputs: Mapping[str, str]) -> str:
    return hash_json(
        {"stage": stage.name, "format": stage.format, "recipe": stage.part(recipe), "inputs": dict(inputs)}
    )


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
    found).

    Raises:
        InputError: what `only` needs is not there yet (names the stage to run first), or the input is wrong.
    """
    # a network that cannot be is refused before hours of work on its texts
    network_of(recipe, recipe.tokens.vocab_size)
    wanted = [only] if only else list(NAMES[: NAMES.index(until) + 1 if until else None])
    if int(os.environ.get("RANK", "0")) > 0:  # a torchrun rank that does not lead has its part in training only
        return {"train": train(recipe, run / "tokens", run / "train", run / "model")} if "train" in wanted else {}
    results: dict[str, Any] = {}
    with locked(run):
        sweep_temporaries(run)
        write_atomic(run / "recipe.toml", to_toml(recipe))
        for name in wanted:
            before = {state.name: state for state in states(recipe, run)}
            state = before[name]
            if state.state == "done" and not fresh:
                results[name] = {**state.figures, "stage_seconds": state.seconds, "was": "done"}
                continue
            for earlier in NAMES[: NAMES.index(name)]:
                if set(_stage(earlier).makes) & set(_stage(name).needs) and before[earlier].state != "done":
                    raise InputError(
                        f"{run}: stage '{name}' needs '{earlier}', which is {before[earlier].state}; run: lmforge "
                        f"{earlier} RECIPE"
                    )
            results[name] = {**_run_stage(_stage(name), recipe, run, state, fresh), "was": state.state}
    return results


def _run_stage(stage: Stage, recipe: Recipe, run: Path, state: State, fresh: bool) -> dict[str, Any]:
    log(f"── {stage.name}")
    if stage.name == "train":
        _drop_foreign_checkpoints(run / "train", state.key, fresh)
    if stage.name == "corpus" and fresh:
        shutil.rmtree(work_folder(run / "corpus"), ignore_errors=True)
    started = time.monotonic()
    figures = stage.run(recipe, run)
    seconds = time.monotonic() - started
    outputs = {path: _output_hash(run / path) or "" for path in stage.makes}
    Record(run).enter(
        stage.name,
        key=state.key,
        inputs=state.inputs,
        recipe=stage.part(recipe),
        seed=recipe.seed,
        seconds=seconds,
        outputs=outputs,
        figures=figures,
    )
    log(f"   {stage.name}: {format_duration(seconds)}")
    return {**figures, "stage_seconds": round(seconds, 3)}


def _drop_foreign_checkpoints(directory: Path, key: str, fresh: bool) -> None:
    """Checkpoints of another recipe or of other tokens must not be gone on from."""
    mark = directory / "key"
    if directory.exists() and (fresh or not mark.exists() or mark.read_text() != key):
        shutil.rmtree(directory)
    write_atomic(mark, key)


def is_trained(run: Path) -> bool:
    """Whether the training of a run has ended, by its record."""
    entry = Record(run).stages.get("train")
    return (
        entry is not None and (run / "train" / "key").is_file() and (run / "train" / "key").read_text() == entry["key"]
    )


def find_recipe(run: Path) -> Recipe:
    """The resolved recipe that a run was made with."""
    if not (run / "recipe.toml").exists():
        raise InputError(f"{run}: no run here (recipe.toml is missing); give the folder of a run, such as runs/laptop")
    return load_recipe(run / "recipe.toml")
