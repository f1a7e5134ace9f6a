"""The commands for scores: evaluate a recipe's models or any model, and the packs that benchmarks are read from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmforge.cli_models import AsJson, ModelPath, Which, one_of, print_json
from lmforge.errors import InputError, LmforgeError
from lmforge.progress import log

packs = typer.Typer(no_args_is_help=True, help="Benchmarks as versioned, checksummed folders on this machine.")
PackNames = Annotated[list[str] | None, typer.Argument(help="packs by name; default: all")]


@packs.command("list")
def list_packs(as_json: AsJson = False) -> None:
    """Every pack: its version, splits and rows, licence, source; or the command that makes it."""
    from lmforge.evaluate.packs import known_packs, packs_here

    known = known_packs()
    rows: list[dict[str, Any]] = []
    for name, pack in packs_here().items():
        if pack is None:
            about = known[name]
            rows.append({"name": name, "here": False, "licence": about.licence, "source": f"Hub: {about.hub}"})
        else:
            splits = {split: file.rows for split, file in pack.files.items()}
            rows.append(
                {"name": name, "here": True, "version": pack.version, "splits": splits}
                | {"licence": pack.licence, "source": pack.source, "folder": str(pack.directory)}
            )
    if as_json:
        print_json({"packs": rows})
        return
    table = Table("pack", "version", "splits (rows)", "licence", "source")
    for row in rows:
        made = row.get("splits", {})
        shown = ", ".join(f"{split} {count if count is not None else '?'}" for split, count in made.items())
        missing = f"not here; lmforge packs fetch {row['name']}"
        table.add_row(row["name"], row.get("version", ""), shown or missing, row["licence"], row["source"])
    Console(width=max(120, Console().width)).print(table)


@packs.command()
def fetch(names: PackNames = None, as_json: AsJson = False) -> None:
    """Make packs from the Hugging Face Hub, once; the only command of an evaluation that opens a connection."""
    from lmforge.evaluate.pack_rows import fetch as make
    from lmforge.evaluate.packs import known_packs

    made = {}
    for name in names or list(known_packs()):
        pack = make(name)
        log(f"{name}: {pack.directory}, version {pack.version}")
        made[name] = {"folder": str(pack.directory), "version": pack.version}
    if as_json:
        print_json({"packs": made})


@packs.command()
def check(names: PackNames = None, as_json: AsJson = False) -> None:
    """Compare every file of packs with its checksum."""
    from lmforge.evaluate.packs import check_file, find_pack, packs_here

    found = {name: find_pack(name) for name in names} if names else {n: p for n, p in packs_here().items() if p}
    faults, files = [], 0
    for name, pack in found.items():
        for file in pack.files.values():
            files += 1
            try:
                check_file(name, file)
            except InputError as error:
                faults.append(str(error))
    for fault in faults:
        log(fault)
    if as_json:
        print_json({"packs": len(found), "files": files, "faults": faults})
    if faults:
        raise LmforgeError(f"{len(faults)} of {files} files are not what their manifest says")
    if not as_json:
        print(f"{len(found)} packs, {files} files: all as their manifests say")


def glue(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="the folder for glue.json, dev/ and submission/")],
    tasks: Annotated[str, typer.Option(help="with commas between")] = "cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli",
    labels: Annotated[str, typer.Option(help="head: a new matrix; words: the labels' words")] = "words",
    lora: Annotated[int, typer.Option(help="rank of the adapters; 0 trains every weight")] = 16,
    epochs: Annotated[float, typer.Option(help="times that each example is seen")] = 3.0,
    batch: Annotated[int, typer.Option(help="examples of an update")] = 16,
    rate: Annotated[float | None, typer.Option(help="largest rate; default: by what is trained")] = None,
    minutes: Annotated[float | None, typer.Option(help="most minutes of training a task")] = None,
    limit: Annotated[int | None, typer.Option(help="most training examples of a task")] = None,
    seed: Annotated[int, typer.Option(help="of the order and of new weights")] = 1,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on GLUE's tasks, each from the model as it is: official metrics, files to submit."""
    from lmforge.evaluate.glue import TASKS, tune, write_answers, write_figures
    from lmforge.formats.load import load_any
    from lmforge.recipe import Lora
    from lmforge.train.classifier import Fit

    if labels not in ("head", "words"):
        raise InputError(f"--labels {labels}: give head or words")
    names = tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise InputError(f"--tasks {unknown[0]}: no such task; tasks are {', '.join(TASKS)}")
    content: dict[str, Any] = {}
    for name in names:
        log(f"glue: {name}")
        rank = Lora(rank=lora) if lora else None
        most = None if minutes is None else 60 * minutes
        fit = Fit(0, lora=rank, epochs=epochs, batch=batch, peak_lr=rate, seed=seed, most_seconds=most)
        _, tuned = tune(name, load_any(model), fit, labels, limit)
        write_answers(name, tuned, out)
        content = write_figures(out, {name: tuned.figures})
    if as_json:
        print_json(content)
        return
    table = Table("task", "metric", "value", "95% interval", "items", title=f"GLUE of {model}")
    for name, own in content["tasks"].items():
        for split in (split for split, part in own.items() if isinstance(part, dict) and "items" in part):
            for metric in (metric for metric, part in own[split].items() if isinstance(part, dict)):
                part = own[split][metric]
                interval = "" if part["low"] is None else f"{part['low']:.3f} – {part['high']:.3f}"
                table.add_row(f"{name} ({split})", metric, f"{part['value']:.3f}", interval, f"{own[split]['items']:,}")
    Console(width=max(100, Console().width)).print(table)
    print(f"GLUE: {content['glue']['average']:.1f} over {len(content['glue']['tasks'])} tasks; written to {out}")


def squad(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="the folder for squad.json, predictions.json and what belongs to them")],
    lora: Annotated[int, typer.Option(help="rank of the adapters; 0 trains every weight")] = 16,
    examples: Annotated[int | None, typer.Option(help="most questions learned from; default: all")] = None,
    learn_dev: Annotated[float, typer.Option(help="share of dev articles learned from instead of scored")] = 0.0,
    epochs: Annotated[float, typer.Option(help="times that each window is seen")] = 2.0,
    batch: Annotated[int, typer.Option(help="windows of an update")] = 16,
    rate: Annotated[float | None, typer.Option(help="largest rate; default: by what is trained")] = None,
    minutes: Annotated[float | None, typer.Option(help="most minutes of training")] = None,
    limit: Annotated[int | None, typer.Option(help="most questions scored, chosen by their hash")] = None,
    window: Annotated[int, typer.Option(help="most tokens of a row")] = 384,
    stride: Annotated[int, typer.Option(min=1, help="context tokens from one window to the next")] = 128,
    seed: Annotated[int, typer.Option(help="of the order and of new weights")] = 1,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model to point at SQuAD 2.0's answers or say that there is none: official figures and files."""
    import torch

    from lmforge.evaluate.spans import Windows, tune_spans, write_pointing
    from lmforge.evaluate.squad import parts_of
    from lmforge.formats.load import load_any
    from lmforge.recipe import Lora
    from lmforge.train.classifier import Fit

    if not 0 <= learn_dev < 1:
        raise InputError(f"--learn-dev {learn_dev}: give a share from 0 to less than 1")
    parts = parts_of(examples, limit, learn_dev)
    loaded = load_any(model)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    rank, most = Lora(rank=lora) if lora else None, None if minutes is None else 60 * minutes
    fit = Fit(0, lora=rank, epochs=epochs, batch=batch, peak_lr=rate, seed=seed, most_seconds=most)
    pointing = tune_spans(loaded, parts, fit, Windows(window, stride))
    write_pointing(pointing, parts.scored, out)
    if as_json:
        print_json(pointing.figures)
        return
    table = Table("metric", "value", "95% interval", title=f"SQuAD 2.0 of {model}: {pointing.figures['items']:,} items")
    for metric in ("exact", "f1", "exact_above_baseline", "f1_above_baseline"):
        part = pointing.figures[metric]
        interval = "" if part["low"] is None else f"{part['low']:.3f} – {part['high']:.3f}"
        table.add_row(metric.replace("_", " "), f"{part['value']:.3f}", interval)
    table.add_row("no answer to any question", f"{pointing.figures['no_answer_baseline']:.3f}", "")
    Console(width=max(100, Console().width)).print(table)
    print(", ".join(f"{key} {value:.2f}" for key, value in pointing.figures["official"].items()))
    print(f"written to {out}")


def _suite(
    given: Path, suite: str, limit: int | None, shots: int | None, out: Path | None, which: Any, as_json: bool
) -> None:
    """A suite's scores of a model, of a run's, or of the run that a recipe makes."""
    from lmforge.evaluate.suites import evaluate_model
    from lmforge.recipe import load_recipe
    from lmforge.report.benchmarks import write_benchmarks

    model = load_recipe(given).directory if given.suffix == ".toml" else given
    folder = out or Path("evaluations") / model.resolve().name
    run = model if (model / "corpus").is_dir() else None
    figures = evaluate_model(model, suite, folder, limit, shots, which, run)
    page = write_benchmarks(folder)
    if as_json:
        print_json(figures)
        return
    table = Table("task", "metric", "value", "95% interval", "items", title=f"{suite} of {model}")
    for name, row in figures["tasks"].items():
        if row["value"] is None:
            table.add_row(name, row.get("not_applicable", ""), "", "", "")
            continue
        interval = f"{row['low']:.3f} – {row['high']:.3f}" if row["low"] is not None else ""
        table.add_row(name, row["metric"], f"{row['value']:.3f}", interval, f"{row['items']:,}")
    Console(width=max(100, Console().width)).print(table)
    print(f"written to {folder}, its page is {page}; beside another model's: lmforge compare {folder} OTHER")


def add_to(app: typer.Typer, show: Callable[..., None]) -> None:
    """Make them commands; `show` prints what a run's stage gave."""

    def evaluate(
        recipe: Annotated[Path, typer.Argument(help="a recipe (TOML); with --suite also a run or any model")],
        suite: Annotated[
            str | None, typer.Option(help="benchmarks: full, language, winograd, glue, squad …, or tasks: sst2,piqa")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="of a suite: most items of each task")] = None,
        shots: Annotated[int | None, typer.Option(help="of a suite: answered examples before each question")] = None,
        out: Annotated[
            Path | None, typer.Option(help="of a suite: the folder to write; default: evaluations/NAME")
        ] = None,
        fresh: Annotated[bool, typer.Option("--fresh", help="do it again from nothing")] = False,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", help="override a key: --set evaluate.items=8 (repeatable)")
        ] = None,
        which: Which = "auto",
        as_json: AsJson = False,
    ) -> None:
        """Models → scores."""
        from lmforge.pipeline import run_stages
        from lmforge.recipe import load_recipe

        if suite is not None:
            _suite(recipe, suite, limit, shots, out, one_of(which), as_json)
            return
        loaded = load_recipe(recipe, overrides or ())
        show(run_stages(loaded, loaded.directory, only="evaluate", fresh=fresh), loaded.directory, as_json, "evaluate")

    app.command()(evaluate)
    app.command()(glue)
    app.command()(squad)
    app.add_typer(packs, name="packs")
