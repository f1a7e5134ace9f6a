"""lm-evaluation-harness as the engine of standard tasks: its task definitions and metrics, fed from local packs.

Definition, rows of a pack ─▶ FOLDER/*.yaml (include: the harness's own file; data: FOLDER/*.jsonl)
                           ─▶ lm_eval.evaluate with our network ─▶ samples: a document each, with its metrics
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.evaluate.offline import offline
from lmforge.evaluate.packs import Row, find_pack, open_pack
from lmforge.record import hash_json

Document = dict[str, Any]
FORMAT = 1  # raised whenever the same model on the same documents would come out differently


@dataclasses.dataclass(frozen=True)
class Definition:
    """A standard task. `file`: the harness's own definition, under its `tasks` folder ("" where `settings` is all of
    it); `make`: a pack's row → the document that it expects, None for a row to leave out; `learned`: the split that
    answered examples come from; `part`: the field whose values are tasks of their own there, of which `file` has the
    place `{part}`; `metric`: the one that is the score, `beside` those that stand beside it."""

    name: str
    file: str
    pack: str
    split: str
    make: Callable[[Row], Document | None]
    metric: str = "acc"
    beside: tuple[str, ...] = ()
    learned: str | None = None
    part: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: str = ""  # how the protocol of published figures differs


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task's files: its parts' names, the documents in their order, and the hash of all that they hold."""

    definition: Definition
    folder: Path
    names: list[str]
    documents: list[Document]
    data: str
    shots: int


def installed() -> str:
    """The version of lm-evaluation-harness.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "this task runs in lm-evaluation-harness, which is not installed; pip install 'lmforge[benchmarks]'"
        ) from error


def documents_of(definition: Definition, limit: int | None = None) -> list[Document]:
    """What the task asks: its pack's rows as documents, those of the smallest hashes where there is a limit, in the
    pack's order; each with an `id`.

    Raises:
        InputError: the pack is not here, or holds no row for the task.
    """
    rows = open_pack(definition.pack, definition.split)
    made = [(number, definition.make(row)) for number, row in enumerate(rows)]
    documents = [{**document, "id": str(number)} for number, document in made if document is not None]
    if not documents:
        raise InputError(f"pack {definition.pack}: no row for the task {definition.name}; is this another copy of it?")
    if limit is not None:
        chosen = {each["id"] for each in sorted(documents, key=hash_json)[:limit]}
        documents = [each for each in documents if each["id"] in chosen]
    return documents


def prepare(definition: Definition, folder: Path, shots: int = 0, limit: int | None = None) -> Prepared:
    """Write the files of a task.

    Raises:
        InputError: the harness or the pack is not here; no split to take answered examples from.
    """
    installed()
    documents = documents_of(definition, limit)
    examples: list[Document] = []
    if shots:
        if definition.learned is None:
            raise InputError(
                f"{definition.name}: shots = {shots}, but its pack has no examples to learn from; leave it out"
            )
        rows = open_pack(definition.pack, definition.learned)
        examples = [document for row in rows if (document := definition.make(row)) is not None]
    parts = _parts(definition, documents)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for part, own in parts.items():
        name = f"lmforge_{definition.name}" + (f"_{part}" if part else "")
        shown = [each for each in examples if not part or each.get(str(definition.part)) == part]
        files = {"test": folder / f"{name}.test.jsonl"}
        _write(files["test"], own)
        if shots:
            files["train"] = folder / f"{name}.train.jsonl"
            _write(files["train"], [{**each, "id": ""} for each in shown])
        content = _configuration(definition, name, part, files, shots)
        (folder / f"{name}.yaml").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        names.append(name)
    pack = find_pack(definition.pack)
    data = hash_json([pack.split(definition.split).sha256, documents, examples])
    return Prepared(definition, folder, names, documents, data, shots)


def _parts(definition: Definition, documents: Sequence[Document]) -> dict[str, list[Document]]:
    if definition.part is None:
        return {"": list(documents)}
    parts: dict[str, list[Document]] = {}
    for document in documents:
        parts.setdefault(str(document[definition.part]), []).append(document)
    return parts


def _write(path: Path, documents: Sequence[Document]) -> None:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in documents), encoding="utf-8")


def _configuration(
    definition: Definition, name: str, part: str, files: Mapping[str, Path], shots: int
) -> dict[str, Any]:
    """The task's file: the harness's own, its data replaced."""
    own = {"include": str(_harness() / "tasks" / definition.file.format(part=part))} if definition.file else {}
    splits = {"test_split": "test", "validation_split": None, "training_split": "train" if shots else None}
    return {
        **own,
        **definition.settings,
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path) for split, path in files.items()},
            "cache_dir": str(next(iter(files.values())).parent / "cache"),
        },
        **splits,
        "fewshot_split": "train" if shots else None,
        "num_fewshot": shots,
    }


def _harness() -> Path:
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness and `datasets` without their own progress and words."""
    import datasets
    import lm_eval.api.task

    def plain(items: Any, *_: Any, **__: Any) -> Any:
        return items

    bar, lm_eval.api.task.tqdm = lm_eval.api.task.tqdm, plain
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def load_tasks(prepared: Prepared) -> dict[str, Any]:
    """The harness's own task objects, by name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(prepared.folder), include_defaults=False)
    tasks: dict[str, Any] = manager.load(prepared.names)["tasks"]
    return tasks


def run(prepared: Prepared, model: Any) -> tuple[list[Document], dict[str, dict[str, Any]]]:
    """(a sample each document, in the documents' order; the harness's own figures by part) of a model that it can ask.

    No connection is opened.
    """
    with offline():
        import lm_eval

        with quiet():
            tasks = load_tasks(prepared)
            result = lm_eval.evaluate(model, {"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=True)
    samples = {sample["doc"]["id"]: sample for own in result["samples"].values() for sample in own}
    return [samples[document["id"]] for document in prepared.documents], dict(result["results"])
