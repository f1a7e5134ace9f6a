"""TOML → recipe: overrides, paths, what a base gives, and one clear line for each problem."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lmforge.errors import InputError
from lmforge.recipe.base import take_model_base
from lmforge.recipe.corpus import BackTranslation, Source
from lmforge.recipe.evaluate import TASK_SETTINGS, DataSettings
from lmforge.recipe.schema import Model, Recipe
from lmforge.recipe.training import example_sizes, fitted_length
from lmforge.registry import Selected


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `section.key=value` in TOML's spelling (a bare word is taken as a string).

    Relative source paths are relative to the recipe's own folder. Raises InputError naming file, key, cause and fix.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such recipe; write one with: lmforge new TEXTS {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    if isinstance(data.get("finetune"), dict) and isinstance(data["finetune"].get("base"), str):
        _take_from_base(data, path.resolve().parent)
    elif isinstance(data.get("model"), dict) and isinstance(data["model"].get("base"), str):
        take_model_base(data, path.resolve().parent)
    recipe = parse_recipe(data, where=str(path))
    return _resolve_paths(recipe, path.resolve().parent)


# keys of [model] that may differ from those of a model it goes on from
OWN = ("recompute", "rope_scaling", "rope_trained")


def _take_from_base(data: dict[str, Any], folder: Path) -> None:
    """Complete a recipe that fine-tunes: network, vocabulary and context of its base, and defaults that suit examples.

    The resolved recipe of a run states all of that itself, so it does not depend on what became of the base.

    Raises:
        InputError: no model there; or the recipe states another network, sources, or rows that would cut examples.
    """
    given = data["finetune"]
    corpus, tokens, model, train, evaluate = (
        data.setdefault(name, {}) for name in ("corpus", "tokens", "model", "train", "evaluate")
    )
    if not all(isinstance(section, dict) for section in (corpus, tokens, model, train, evaluate)):
        return  # parsing tells what is wrong
    base = _absolute(Path(given["base"]), folder)
    base = base if (base / "config.json").is_file() else base / "model"
    if _states_its_network(model, tokens):
        return  # training says where the base does not fit
    shape = _shape_of(base, given["base"])
    given["base"] = str(base)
    if corpus.setdefault("sources", []):
        raise InputError(
            "corpus.sources: a recipe with [finetune] learns from finetune.train alone; leave the sources out"
        )
    for section, stated, key in [("model", model, key) for key in Model.model_fields if key in shape] + [
        ("tokens", tokens, "vocab_size")
    ]:
        value = (
            [stated[key]]
            if key == "attention" and isinstance(stated.get(key), str)
            else stated.setdefault(key, shape[key])
        )
        if value != shape[key] and key not in OWN:
            raise InputError(
                f"{section}.{key}: {value} is not {shape[key]}, that of finetune.base; leave it out, it is taken from "
                "there"
            )
    if tokens.setdefault("context", shape["context"]) != shape["context"] and shape["positions"] == "learned":
        raise InputError(
            f"tokens.context: {tokens['context']}; the learned positions of finetune.base need {shape['context']}"
        )
    if tokens.setdefault("packing", "best_fit") == "ring":
        raise InputError("tokens.packing: 'ring' would cut examples in two; leave it out, examples are kept whole")
    if train.get("context_schedule"):
        raise InputError("train.context_schedule: shorter rows would cut examples in two; leave it out")
    train.setdefault("peak_lr", 2e-3 if given.get("lora") is not None else 3e-4)
    train.setdefault("weight_decay", 0.0)
    evaluate.setdefault("tasks", ["answers", "generation_speed"])
    if isinstance(given.get("train"), str):
        _fit_to_examples(_absolute(Path(given["train"]), folder), given, train, tokens["context"])


def _states_its_network(model: dict[str, Any], tokens: dict[str, Any]) -> bool:
    """Whether a recipe has every key that a base would give, as only a resolved one has."""
    needed = {name for name, field in Model.model_fields.items() if field.default is not None}
    return needed <= model.keys() and {"vocab_size", "context", "packing"} <= tokens.keys()


def _shape_of(base: Path, given: str) -> dict[str, Any]:
    """The architecture of a saved model that can be trained.

    Raises:
        InputError: there is none, or it is compressed.
    """
    try:
        config = json.loads((base / "config.json").read_text())
        shape, compression = dict(config["architecture"]), config["compression"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (base / "config.json").is_file() and "model_type" in (base / "config.json").read_text(errors="replace"):
            raise InputError(
                f"finetune.base: {given}: a checkpoint of transformers; make a model of it first: "
                f"lmforge import {given} MODEL"
            ) from error
        raise InputError(
            f"finetune.base: {given}: no model there; give a run that is trained, a checkpoint or a model"
        ) from error
    if compression:
        raise InputError(
            f"finetune.base: {given}: a compressed model, which cannot be trained; give the model that it was made from"
        )
    return shape


def _fit_to_examples(path: Path, given: dict[str, Any], train: dict[str, Any], context: Any) -> None:
    """Batch size and epochs that give enough updates for as many examples as there are, where neither is stated. A
    recipe that states its steps, tokens or batches is left as it is."""
    size = example_sizes(path)
    if size is None or not isinstance(context, int) or context < 1:
        return
    if {"steps", "tokens", "batch_tokens", "batch_schedule"} & train.keys():
        return
    examples, tokens = size
    epochs = given.get("epochs")
    fitted = fitted_length(examples, tokens, context, epochs if isinstance(epochs, int | float) else None)
    train["batch_tokens"], given["epochs"] = fitted


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as nested dictionaries."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def _resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    corpus = recipe.corpus
    changed: dict[str, Any] = {
        "sources": tuple(source.model_copy(update={"path": _resolved(source, base)}) for source in corpus.sources),
        "synthesis": tuple(
            step.model_copy(update={"model": _absolute(step.model, base)})
            if isinstance(step, BackTranslation) and step.model
            else step
            for step in corpus.synthesis
        ),
        "decontaminate": tuple(_absolute(path, base) for path in corpus.decontaminate),
        "toxic_words": corpus.toxic_words and _absolute(corpus.toxic_words, base),
    }
    for name, keys in (("perplexity", ("reference",)), ("quality", ("good", "bad", "model"))):
        if section := getattr(corpus, name):
            paths = {key: _absolute(getattr(section, key), base) for key in keys if getattr(section, key)}
            changed[name] = section.model_copy(update=paths)
    tasks = tuple(
        task.model_copy(update={"data": _absolute(task.data, base)})
        if isinstance(task, DataSettings) and task.data
        else task
        for task in recipe.evaluate.tasks
    )
    evaluate = recipe.evaluate.model_copy(update={"tasks": tasks})
    finetune = recipe.finetune
    if finetune:
        paths_given = {
            key: _absolute(path, base) for key in ("base", "train", "test") if (path := getattr(finetune, key))
        }
        finetune = finetune.model_copy(update=paths_given)
    resolved = {"corpus": corpus.model_copy(update=changed), "evaluate": evaluate, "finetune": finetune}
    return recipe.model_copy(update=resolved)


def _absolute(path: Path, base: Path) -> Path:
    return (base / path.expanduser()).resolve()


def _resolved(source: Source, base: Path) -> Path | None:
    path = source.path and base / source.path.expanduser()
    # OWNER/NAME on the Hub
    return source.path if path is None or (source.kind == "hub" and not path.exists()) else path.resolve()


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"--set {override}: expected section.key=value, for example --set train.peak_lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for name in names[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {override}: {name} is a value, not a section")
    data[names[-1]] = value


def _explain(problem: Any) -> str:
    """One line for one pydantic problem: the dotted key, the cause, the fix."""
    location = [part for part in problem["loc"] if part not in ("function-after", "tagged-union")]
    dotted = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        key, valid = str(location[-1]), _valid_keys(location[:-1])
        close = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
        section = ".".join(str(part) for part in location[:-1]) or "the top level"
        return (
            f"{dotted}: unknown key '{key}' in {section}; did you mean '{close[0]}'?"
            if close
            else f"{dotted}: unknown key"
        )
    cause = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {json.dumps(given, default=str)[:80]})"
    return f"{dotted}: {cause}{shown}"


def _valid_keys(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at `location`."""
    if len(location) == 4 and list(location[:2]) == ["evaluate", "tasks"]:  # a registered task's, by its name
        return list(TASK_SETTINGS[str(location[3])].model_fields)
    section: type[BaseModel] = Recipe
    choices: list[type[BaseModel]] = []
    for part in location:
        if isinstance(part, int):
            continue
        if part in section.model_fields:
            choices = _sections_in(section.model_fields[part].annotation)
        else:  # one of several sections, named by its method (or whatever chooses it)
            choices = [
                each
                for each in choices
                if any(part in get_args(field.annotation) for field in each.model_fields.values())
            ]
        if not choices:
            return []
        section = choices[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    for chosen in getattr(annotation, "__metadata__", ()):
        if isinstance(chosen, Selected):
            return list(chosen.sections.values())
    if get_origin(annotation) in (tuple, list, Union, types.UnionType, Annotated):
        return [found for part in get_args(annotation) for found in _sections_in(part)]
    return []
