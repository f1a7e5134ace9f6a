"""The stages: what each depends on, what it makes, what it does before it begins anew, and how it runs.

corpus ─▶ tokens ─▶ train ─▶ compress ─▶ evaluate ─▶ report
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lmforge.aside import drop
from lmforge.compress.ablate import ablate
from lmforge.compress.chain import compress
from lmforge.compress.method import Evaluate, inputs_of
from lmforge.corpus.build import build_corpus, work_folder
from lmforge.corpus.clean.filters import filters_fingerprint
from lmforge.corpus.images.build import build_images, reads_images
from lmforge.corpus.labelled import build_examples
from lmforge.corpus.overlap.decontaminate import benchmark_files
from lmforge.corpus.sources.kinds import fingerprint
from lmforge.corpus.synthesize.translate import Translate
from lmforge.errors import InputError
from lmforge.evaluate.harness import benchmark_texts, evaluate, task_inputs
from lmforge.evaluate.windows import quick_bits_per_byte
from lmforge.formats import base as formats_base
from lmforge.formats.base import base_tokenizer
from lmforge.generate import translator
from lmforge.generate.translator import HubTranslator, Translator
from lmforge.pipeline.checkpoints import keep_or_set_aside
from lmforge.pipeline.keys import what_of
from lmforge.pipeline.state import GONE, State
from lmforge.pipeline.summary import (
    compress_summary,
    corpus_summary,
    evaluate_summary,
    no_summary,
    report_summary,
    tokens_summary,
    train_summary,
)
from lmforge.recipe import BackTranslation, Recipe
from lmforge.record import content_hash, hash_file, hash_json
from lmforge.report.page import write_report
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.chat import render_conversation
from lmforge.tokens.loader import Batch, Loader
from lmforge.tokens.mixture import curricula
from lmforge.tokens.shards import TOKENIZER, Shards
from lmforge.train.adapters import fingerprint as base_fingerprint
from lmforge.train.loop import train

CALIBRATION_ROWS = 32
Part = dict[str, Any]
Inputs = dict[str, str]


def _no_inputs(_recipe: Recipe) -> Inputs:
    return {}


def _nothing_to_reset(_recipe: Recipe, _run: Path, _state: State, _fresh: bool) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run, whole: nothing else knows it by its name.

    `part(recipe)` is what of the recipe it depends on, by section; `needs` and `makes` are paths in the run, made by
    earlier stages and by this one. `inputs(recipe)` gives what lies outside of the run, {name: hash}, `GONE` where it
    cannot be read now. `reset(recipe, run, state, fresh)` is called before a stage that is not done runs: it sees to
    what an earlier attempt left; `fresh` asks for all of that to go. Where `collective`, every rank of a launcher calls
    `run`, or else rank 0 alone. `key_figure` says in a few words what came out. `format` rises when the same recipe
    makes another thing.
    """

    name: str
    part: Callable[[Recipe], Part]
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    run: Callable[[Recipe, Path], dict[str, Any]]
    inputs: Callable[[Recipe], Inputs] = _no_inputs
    reset: Callable[[Recipe, Path, State, bool], None] = _nothing_to_reset
    collective: bool = False
    key_figure: Callable[[dict[str, Any]], str] = no_summary
    format: int = 1


def _readable(name: str, value: Callable[[], str]) -> Inputs:
    """One input, `GONE` where it cannot be read: the stage that reads it says what is wrong with it."""
    try:
        return {name: value()}
    except InputError:
        return {name: GONE}


# corpus


def _corpus(recipe: Recipe, run: Path) -> dict[str, Any]:
    if recipe.finetune:
        tokenizer = Tokenizer.load(recipe.finetune.base / TOKENIZER)
        return build_examples(
            recipe, run / "corpus", lambda messages: len(render_conversation(messages, tokenizer).tokens)
        )
    if reads_images(recipe):
        return build_images(recipe, run / "corpus")
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


def _corpus_part(recipe: Recipe) -> Part:
    part = {"corpus": what_of("corpus", recipe.corpus), "seed": recipe.seed}
    if recipe.finetune:
        part |= {"finetune": what_of("finetune", recipe.finetune, "epochs", "lora"), "context": recipe.tokens.context}
    if any(source.kind == "images" for source in recipe.corpus.sources):
        part["images"] = {name: getattr(recipe.model, f"image_{name}") for name in ("size", "patch", "channels")}
    return part


def _corpus_inputs(recipe: Recipe) -> Inputs:
    if recipe.finetune:
        examples = (path for path in (recipe.finetune.train, recipe.finetune.test) if path)
        return {path.name: hash_file(path) if path.is_file() else GONE for path in examples} | _base(recipe)
    inputs: Inputs = {}
    for number, source in enumerate(recipe.corpus.sources):
        inputs |= _readable(f"source {number} ({source.kind})", lambda source=source: fingerprint(source))  # type: ignore[misc]
    for number, step in enumerate(recipe.corpus.synthesis):
        if isinstance(step, BackTranslation) and step.model:
            name, model = f"synthesis {number} (model)", step.model
            inputs |= _readable(name, lambda model=model: translator.fingerprint(model))  # type: ignore[misc]
    return inputs | _filters(recipe) | _benchmarks(recipe)


def _filters(recipe: Recipe) -> Inputs:
    try:
        return filters_fingerprint(recipe.corpus)
    except InputError:
        return {"corpus filters": GONE}


def _benchmarks(recipe: Recipe) -> Inputs:
    inputs: Inputs = {}
    for path in recipe.corpus.decontaminate:
        try:
            inputs |= {f"benchmark {file.name}": f"{file.size} {file.mtime_ns}" for file in benchmark_files([path])}
        except InputError:
            inputs |= {f"benchmark {path.name}": GONE}
    try:
        tasks = {f"task {name} (texts kept out)": hash_json(texts) for name, texts in benchmark_texts(recipe).items()}
    except InputError:  # the stage that reads them says what is wrong
        tasks = {"texts of tasks (kept out)": GONE}
    return inputs | tasks


def _corpus_reset(_recipe: Recipe, run: Path, _state: State, fresh: bool) -> None:
    if fresh:
        drop(work_folder(run / "corpus"))


# tokens


def _tokens(recipe: Recipe, run: Path) -> dict[str, Any]:
    known = None
    if recipe.finetune:
        known = Tokenizer.load(recipe.finetune.base / TOKENIZER)
    elif recipe.model.base:
        known = base_tokenizer(recipe.model.base)
    return build_tokens(recipe, run / "corpus", run / "tokens", known)


def _base(recipe: Recipe) -> Inputs:
    """The model that training goes on from, by its weights."""
    if recipe.model.base:
        given = recipe.model.base
        return _readable("base", lambda: formats_base.fingerprint(given))
    if not recipe.finetune:
        return {}
    base = recipe.finetune.base
    return _readable("base", lambda: base_fingerprint(base))


# train


def _train_part(recipe: Recipe) -> Part:
    part = {
        "model": what_of("model", recipe.model),
        "train": what_of("train", recipe.train),
        "seed": recipe.seed,
        "context": recipe.tokens.context,
        "packing": recipe.tokens.packing,
        "curricula": {name: [list(pair) for pair in pairs] for name, pairs in curricula(recipe).items()},
    }
    if recipe.finetune:
        fine = what_of("finetune", recipe.finetune)
        part["finetune"] = {key: value for key, value in fine.items() if key in ("epochs", "lora")}
    return part


def _train(recipe: Recipe, run: Path) -> dict[str, Any]:
    return train(recipe, run / "tokens", run / "train", run / "model")


# compress, evaluate, report


def _compress(recipe: Recipe, run: Path) -> dict[str, Any]:
    return compress(recipe, run / "model", run / "compressed", *rows_and_scores(recipe, run))


def ablation(recipe: Recipe, run: Path) -> dict[str, Any]:
    """As `ablate`, of a run whose compress stage is done; in `RUN/ablation`, of this chain and this model alone."""
    known = hash_json([what_of("compress", recipe.compress), content_hash(run / "model"), recipe.seed])[:12]
    return ablate(recipe, run / "model", run / "compressed", run / "ablation" / known, *rows_and_scores(recipe, run))


def rows_and_scores(recipe: Recipe, run: Path) -> tuple[Callable[[int], Batch], Evaluate]:
    """What compression trains and calibrates on, and how it is judged."""
    context = recipe.tokens.context
    shards = Shards.open(run / "tokens", "train")
    rows = min(recipe.compress.calibration_rows or CALIBRATION_ROWS, max(1, shards.tokens // context - 1))
    loader = Loader(shards, context, rows, recipe.seed, recipe.tokens.packing)
    tokens = recipe.train.validate_tokens
    return loader.batch, lambda model: {
        "bits_per_byte": quick_bits_per_byte(model, run / "tokens", "valid", context, tokens)
    }


def _evaluate(recipe: Recipe, run: Path) -> dict[str, Any]:
    models = {"model": run / "model", "compressed": run / "compressed"}
    figures: dict[str, Any] = evaluate(recipe, models, run / "corpus", run / "tokens", run / "scores")
    return figures


def _report(_recipe: Recipe, run: Path) -> dict[str, Any]:
    return {"page": str(write_report(run))}


STAGES = (
    Stage(
        "corpus",
        part=_corpus_part,
        needs=(),
        makes=("corpus",),
        run=_corpus,
        inputs=_corpus_inputs,
        reset=_corpus_reset,
        key_figure=corpus_summary,
        format=3,
    ),
    Stage(
        "tokens",
        part=lambda recipe: {"tokens": what_of("tokens", recipe.tokens, "packing")},
        needs=("corpus",),
        makes=("tokens",),
        run=_tokens,
        inputs=_base,
        key_figure=tokens_summary,
        format=2,
    ),
    Stage(
        "train",
        part=_train_part,
        needs=("tokens",),
        makes=("model",),
        run=_train,
        inputs=_base,
        reset=keep_or_set_aside,
        collective=True,
        key_figure=train_summary,
    ),
    Stage(
        "compress",
        part=lambda recipe: {"compress": what_of("compress", recipe.compress)},
        needs=("tokens", "model"),
        makes=("compressed",),
        run=_compress,
        inputs=lambda recipe: inputs_of(recipe.compress.steps),
        key_figure=compress_summary,
    ),
    Stage(
        "evaluate",
        part=lambda recipe: {"evaluate": what_of("evaluate", recipe.evaluate), "seed": recipe.seed},
        needs=("corpus", "tokens", "model", "compressed"),
        inputs=task_inputs,
        makes=("scores",),
        run=_evaluate,
        key_figure=evaluate_summary,
    ),
    Stage(
        "report",
        part=lambda recipe: {},
        needs=("corpus", "tokens", "model", "compressed", "scores"),
        makes=("report.html",),
        run=_report,
        key_figure=report_summary,
    ),
)
NAMES = tuple(stage.name for stage in STAGES)


def stage_named(name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in STAGES if stage.name == name)


def makers(paths: Iterable[str]) -> list[Stage]:
    """The stages that make some of these paths, in order."""
    return [stage for stage in STAGES if {*stage.makes} & {*paths}]
