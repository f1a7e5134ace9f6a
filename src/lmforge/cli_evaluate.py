"""The commands for scores: evaluate a recipe's models or any model, and the packs that benchmarks are read from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmforge.cli_models import AsJson, Which, one_of, print_json
from lmforge.errors import InputError, LmforgeError
from lmforge.progress import log

packs = typer.Typer(no_args_is_help=True, help="Benchmarks as versioned, checksummed folders on this machine.")
PackNames = Annotated[list[str] | None, typer.Argument(help="packs by name; default: all")]


@packs.command("list")
def list_packs(as_json: AsJson = False) -> None:
    """Every pack: its version, splits and rows, licence, source; or the command that makes it."""
    from lmforge.evaluate.packs import known_packs, packs_here

    known, rows = known_packs(), []
    for name, pack in packs_here().items():
        if pack is None:
            about = known[name]
            rows.append({"name": name, "here": False, "licence": about.licence, "source": f"Hub: {about.hub}"})
        else:
            splits = {split: file.rows for split, file in pack.files.items()}
            licence, source = pack.licence, pack.source
            rows.append(
                {"name": name, "here": True, "version": pack.version, "splits": splits}
                | {"licence": licence, "source": source, "folder": str(pack.directory)}
            )
    if as_json:
        print_json({"packs": rows})
        return
    table = Table("pack", "version", "splits (rows)", "licence", "source")
    for row in rows:
        made: Any = row.get("splits", {})
        splits = ", ".join(f"{split} {count if count is not None else '?'}" for split, count in made.items())
        missing = f"not here; lmforge packs fetch {row['name']}"
        table.add_row(row["name"], row.get("version", ""), splits or missing, row["licence"], row["source"])
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


def _suite(
    given: Path, suite: str, limit: int | None, shots: int | None, out: Path | None, which: Any, as_json: bool
) -> None:
    """A suite's scores of a model, of a run's, or of the run that a recipe makes."""
    from lmforge.evaluate.suites import evaluate_model
    from lmforge.recipe import load_recipe

    model = load_recipe(given).directory if given.suffix == ".toml" else given
    folder = out or Path("evaluations") / model.resolve().name
    run = model if (model / "corpus").is_dir() else None
    figures = evaluate_model(model, suite, folder, limit, shots, which, run)
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
    print(f"written to {folder}; beside another model's: lmforge compare {folder} OTHER")


def add_to(app: typer.Typer, show: Callable[..., None]) -> None:
    """Make them commands; `show` prints what a run's stage gave."""

    def evaluate(
        recipe: Annotated[Path, typer.Argument(help="a recipe (TOML); with --suite also a run or any model")],
        suite: Annotated[
            str | None, typer.Option(help="benchmarks: full, language, winograd, glue …, or tasks: sst2,piqa")
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
    app.add_typer(packs, name="packs")
