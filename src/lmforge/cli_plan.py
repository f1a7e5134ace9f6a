"""The commands that foretell and prepare a training: plan, launch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmforge.cli_models import AsJson, figure, print_json
from lmforge.errors import InputError
from lmforge.progress import log
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import write_atomic

if TYPE_CHECKING:
    from lmforge.plan.accelerators import Cluster

RecipePath = Annotated[Path, typer.Argument(help="the recipe (TOML)")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a key: --set train.peak_lr=3e-4 (repeatable)")]
OnHardware = Annotated[
    str | None, typer.Option("--hardware", help="a cluster: NAMExCOUNT such as h100x64, or description; default: here")
]
Dial = Annotated[
    str | None, typer.Option(help="size it by one number: tiny, small, medium, large, huge, or a number of layers")
]


def read_recipe(path: Path, overrides: list[str] | None, dial: str | None = None) -> Recipe:
    """The recipe of a command line."""
    if dial is None:
        return load_recipe(path, overrides or ())
    from lmforge.plan.dial import dialled

    return load_recipe(path, [*dialled(load_recipe(path, overrides or ()), dial), *(overrides or ())])


def plan(
    recipe: RecipePath,
    dial: Dial = None,
    hardware: OnHardware = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="apply the layout without its devices and list everything that is wrong")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure this machine's CPU first, a minute or two, and keep that")
    ] = False,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Parameters, FLOPs, memory, hours of a recipe; fits or not. Nothing is run."""
    from lmforge.plan.accelerators import cluster_of
    from lmforge.plan.clusters import plan_for
    from lmforge.plan.simulate import plan as make_plan

    read = read_recipe(recipe, overrides, dial)
    cluster = cluster_of(hardware) if hardware else None
    if dry:
        _dry_run(read, cluster, recipe, as_json)
        return
    if measure:
        from lmforge.plan.here import keep_speeds
        from lmforge.plan.probe import measure as measure_machine

        keep_speeds(measure_machine())
    figures = plan_for(read, cluster) if cluster else make_plan(read)
    if as_json:
        print_json(figures)
        return
    Console().print(table_of(figures, f"plan of {recipe}"))


def _dry_run(read: Recipe, cluster: Cluster | None, path: Path, as_json: bool) -> None:
    from lmforge.plan.dry_run import dry_run

    found = dry_run(read, cluster)
    if as_json:
        print_json(found)
    else:
        stages = [
            {"rank": each["rank"], "parameters": each["parameters"], **each["memory_bytes"]} for each in found["stages"]
        ]
        rows = {f"stage {each['stage']}": row for each, row in zip(found["stages"], stages, strict=True)}
        Console().print(
            table_of({"processes": found["processes"], "axes": found["axes"], **rows}, f"dry run of {path}")
        )
    if found["problems"]:
        for problem in found["problems"]:
            log(f"{path}: {problem}")
        raise typer.Exit(InputError.exit_code)
    if not as_json:
        print("nothing is wrong with this layout")


def table_of(figures: dict[str, Any], title: str) -> Table:
    """Figures as a table of two columns."""
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for number, each in enumerate(value, 1):
                table.add_row(f"{name} {number}", _lines(each))
        else:
            table.add_row(name, _lines(value) if isinstance(value, dict) else figure(value))
    return table


def _lines(values: dict[str, Any]) -> str:
    """One line for each; what is inside of a value in one line too."""

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {figure(each)}" for key, each in value.items())
        return figure(value)

    return "\n".join(f"{key}: {shown(value)}" for key, value in values.items())


def launch(
    recipe: RecipePath,
    slurm: Annotated[bool, typer.Option("--slurm", help="write a batch script for Slurm")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="write a job for Kubernetes")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="write a driver for a Ray cluster")] = False,
    nodes: Annotated[int | None, typer.Option(help="machines")] = None,
    devices: Annotated[int | None, typer.Option(help="GPUs of each machine (with --cpu: processes)")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="machines without GPUs")] = False,
    restarts: Annotated[int, typer.Option(help="times that failed processes are started again")] = 3,
    time: Annotated[str | None, typer.Option(help="Slurm: the longest it may run, such as 1-12:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: partition")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: account")] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: a container image with lmforge")] = None,
    volume: Annotated[str | None, typer.Option(help="Kubernetes: claim of the volume that holds the run")] = None,
    mount: Annotated[
        str, typer.Option(help="Kubernetes: where the volume is mounted, and the run's folder is")
    ] = "/run-data",
    namespace: Annotated[str, typer.Option(help="Kubernetes: namespace")] = "default",
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path(),
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write the job files that train a recipe on a cluster's machines. Nothing is submitted."""
    from lmforge.parallel.launch import Job, job_files

    chosen = [name for name, wanted in (("slurm", slurm), ("kubernetes", kubernetes), ("ray", ray)) if wanted]
    if len(chosen) != 1:
        raise InputError("launch: say for which cluster: one of --slurm, --kubernetes, --ray")
    read = read_recipe(recipe, overrides)
    given = {
        "nodes": nodes, "devices": devices, "cpu": cpu, "restarts": restarts, "time": time, "partition": partition,
        "account": account, "image": image, "volume": volume, "mount": mount, "namespace": namespace,
        "overrides": tuple(overrides or ()),
    }  # fmt: skip
    files = job_files(chosen[0], read.name, recipe, Job(**given), _processes(read))  # type: ignore[arg-type]
    for name, content in files.items():
        write_atomic(out / name, content)
    paths = [str(out / name) for name in files]
    print_json({"files": paths}) if as_json else print("\n".join(f"wrote {path}" for path in paths))


def _processes(recipe: Recipe) -> int | None:
    """How many a recipe's layout takes, or a multiple of how many; None where any number will do."""
    from lmforge.parallel.mesh import AXES

    stated = math.prod(getattr(recipe.parallel, axis) or 1 for axis in AXES)
    return stated if stated > 1 else None


def add_planning_to(app: typer.Typer) -> None:
    """Make them commands."""
    app.command()(plan)
    app.command()(launch)
