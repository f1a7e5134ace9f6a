"""The commands: one verb per stage, thin. `lmforge --help` lists them.

Every command prints for people, or one JSON object on stdout with --json; progress and logs go to stderr.
Exit status: 0 done, 1 the work failed, 2 the input is wrong, 3 it does not fit this machine, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmforge import __version__
from lmforge.allocator import keep_freed_memory
from lmforge.cli_evaluate import add_to as add_evaluation
from lmforge.cli_models import AsJson, ModelPath, Which, add_to, one_of, print_json
from lmforge.cli_plan import Dial, RecipePath, Set, add_planning_to, read_recipe
from lmforge.errors import InputError, LmforgeError
from lmforge.interrupted import Commands
from lmforge.progress import format_duration, log
from lmforge.recipe import Recipe
from lmforge.record import write_atomic

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="lmforge makes a language model, whole: one recipe, one command.",
)

RunPath = Annotated[Path, typer.Argument(help="the folder of a run, such as runs/laptop")]
Fresh = Annotated[bool, typer.Option("--fresh", help="do it again from nothing")]


@app.command()
def new(
    texts: Annotated[Path, typer.Argument(help="a folder of texts, a .jsonl or a .parquet file")],
    recipe: Annotated[Path, typer.Argument(help="the recipe to write")] = Path("recipe.toml"),
    dial: Dial = None,
    base: Annotated[
        str | None, typer.Option(help="a model to go on from: a run, a model, a GGUF file, PACKAGE:FILE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a recipe sized to these texts and to this machine, or by a dial, or one that goes on from a model."""
    from lmforge.plan.continued import continued_for
    from lmforge.plan.dial import dialled_text
    from lmforge.plan.hardware import detect
    from lmforge.plan.propose import recipe_for

    if recipe.exists():
        raise InputError(f"{recipe}: exists already; name another file, or remove it")
    if base is not None and dial is not None:
        raise InputError("--dial sizes a new network, and the size of --base is known; leave one of them out")
    text = recipe_for(texts, detect()) if base is None else continued_for(texts, base, detect())
    text = text if dial is None else dialled_text(text, dial)
    write_atomic(recipe, text)
    print_json({"recipe": str(recipe)}) if as_json else print(
        f"wrote {recipe}; next: lmforge plan {recipe}, then lmforge run {recipe}"
    )


add_planning_to(app)


@app.command()
def run(
    recipe: RecipePath,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    fresh: Fresh = False,
    dial: Dial = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Bring a run up to date: every stage that is out of date, in order."""
    from lmforge.pipeline import NAMES, run_stages

    loaded = read_recipe(recipe, overrides, dial)
    if until is not None and until not in NAMES:
        raise InputError(f"--until {until}: no such stage; give one of {', '.join(NAMES)}")
    _print_results(run_stages(loaded, loaded.directory, until=until, fresh=fresh), loaded.directory, as_json)


def _print_results(results: dict[str, Any], directory: Path, as_json: bool, stage: str | None = None) -> None:
    """What a run's stages, or one of them, gave: one object or one table, by whoever leads."""
    from lmforge.parallel.agree import is_main

    if not is_main():
        return
    if as_json:
        print_json(results if stage is None else results[stage])
    else:
        _print_summary(results, directory)


def _print_summary(results: dict[str, Any], directory: Path) -> None:
    from lmforge.pipeline import stage_named

    table = Table("stage", "time", "key figure", title=f"run {directory}")
    for name, figures in results.items():
        seconds = figures.get("stage_seconds")
        took = "up to date" if figures.get("was") == "done" else format_duration(seconds or 0)
        table.add_row(name, took, stage_named(name).key_figure(figures))
    Console(width=max(100, Console().width)).print(table)
    if all(figures.get("was") == "done" for figures in results.values()):
        print(f"everything in {directory} is up to date")
    if "report" in results:
        print("next:")
        print(f"  lmforge chat {directory}      # talk to it in the terminal")
        print(f"  lmforge serve {directory}     # OpenAI-compatible API and a chat page on http://127.0.0.1:8000")
        page = directory / "report.html"
        print(f"  lmforge report {directory}    # writes and names the page that shows all of it: {page}")


def _stage_command(name: str, description: str) -> None:
    def command(recipe: RecipePath, fresh: Fresh = False, overrides: Set = None, as_json: AsJson = False) -> None:
        from lmforge.pipeline import run_stages

        loaded = read_recipe(recipe, overrides)
        results = run_stages(loaded, loaded.directory, only=name, fresh=fresh)
        _print_results(results, loaded.directory, as_json, stage=name)

    command.__doc__ = description
    app.command(name)(command)


_stage_command("corpus", "Raw text → clean documents.")
_stage_command("tokens", "Documents → tokenizer and token shards.")
_stage_command("train", "Token shards → checkpoints and the chosen model. Goes on from the newest checkpoint.")


@app.command()
def compress(
    recipe: RecipePath,
    fresh: Fresh = False,
    overrides: Set = None,
    as_json: AsJson = False,
    ablate: Annotated[bool, typer.Option("--ablate", help="then the chain with each step left out in turn")] = False,
) -> None:
    """Model → smaller model, with a table of what it cost."""
    from lmforge.pipeline import ablation, run_stages

    loaded = read_recipe(recipe, overrides)
    results = run_stages(loaded, loaded.directory, only="compress", fresh=fresh)
    results = {"compress": ablation(loaded, loaded.directory)} if ablate else results
    if as_json or not ablate:
        _print_results(results, loaded.directory, as_json, stage="compress")


@app.command()
def status(
    directory: RunPath,
    watch: Annotated[
        bool, typer.Option("--watch", help="draw the training's curves until it is done (Ctrl-C leaves it running)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What is done, from what, how long it took, what is stale."""
    from lmforge.pipeline import find_recipe, is_trained, states

    if watch and not as_json:
        from lmforge.report.watch import watch as draw

        find_recipe(directory)
        draw(directory, lambda: is_trained(directory))
        return
    known = states(find_recipe(directory), directory)
    if as_json:
        keys = ("name", "state", "why", "seconds", "key", "inputs", "gone")
        print_json({"run": str(directory), "stages": [{key: getattr(each, key) for key in keys} for each in known]})
        return
    table = Table("stage", "state", "time", "key", "made from", title=f"run {directory}")
    for s in known:
        made_from = [f"{name}: {digest[:12]}{' (gone now)' * (name in s.gone)}" for name, digest in s.inputs.items()]
        state = f"{s.state}: {s.why}" if s.why else s.state
        took = format_duration(s.seconds) if s.seconds is not None else ""
        table.add_row(s.name, state, took, s.key[:12], "\n".join(made_from))
    Console(width=max(100, Console().width)).print(table)


@app.command()
def report(directory: RunPath, as_json: AsJson = False) -> None:
    """Write the HTML page of a run, or of a model's benchmarks, and name it."""
    from lmforge.pipeline import find_recipe
    from lmforge.report.benchmarks import write_benchmarks
    from lmforge.report.page import write_report

    if not (directory / "recipe.toml").is_file() and (directory / "scores").is_dir():
        page = write_benchmarks(directory)
    else:
        find_recipe(directory)
        page = write_report(directory)
    print_json({"page": str(page)}) if as_json else print(page)


@app.command()
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Option(help="the text to continue; - reads stdin")] = "",
    max_tokens: Annotated[int, typer.Option(help="the most tokens to add")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time")] = 0.8,
    top_k: Annotated[int, typer.Option(help="draw among the K likeliest; 0: all")] = 0,
    top_p: Annotated[float, typer.Option(help="draw among the likeliest that hold this probability")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same text")] = None,
    which: Which = "auto",
    as_json: AsJson = False,
) -> None:
    """Continue a text."""
    from lmforge.formats.load import load_any
    from lmforge.generate.decode import Sampling
    from lmforge.serve.terminal import generate_text

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    served = load_any(model, which=one_of(which))
    text = sys.stdin.read() if prompt == "-" else prompt
    if not as_json:
        print(text, end="", flush=True)
    try:
        show = None if as_json else lambda piece: print(piece, end="", flush=True)
        result = generate_text(served, text, sampling, show)
    except KeyboardInterrupt:
        if not as_json:
            print(flush=True)  # the line that says so stands alone
        raise
    if as_json:
        print_json(result)
        return
    print()
    log(f"{result['tokens']} tokens in {result['seconds']:.2f} s")


@app.command()
def chat(
    model: ModelPath,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time")] = 0.8,
    max_tokens: Annotated[int, typer.Option(help="the most tokens of an answer")] = 128,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same answers")] = None,
    which: Which = "auto",
) -> None:
    """Talk to a model in the terminal (/help lists commands, /quit leaves)."""
    from lmforge.formats.load import load_any
    from lmforge.generate.decode import Sampling
    from lmforge.serve.chat import chat as talk

    talk(load_any(model, which=one_of(which)), Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed))


@app.command()
def serve(
    model: ModelPath,
    host: Annotated[
        str | None, typer.Option(help="address to listen on (default: the run's recipe, else 127.0.0.1)")
    ] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on (default: the run's recipe, else 8000)")] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="a name by which browsers may call it, beside localhost (repeatable)")
    ] = None,
    batch_invariant: Annotated[
        bool | None,
        typer.Option(help="answers that do not depend on requests answered together (default: the recipe's, else so)"),
    ] = None,
    which: Which = "auto",
) -> None:
    """Serve a model: OpenAI-compatible API under /v1, a chat page at /."""
    from lmforge.formats.load import load_any
    from lmforge.pipeline import find_recipe
    from lmforge.serve.terminal import serve as listen

    settings = (find_recipe(model) if (model / "recipe.toml").is_file() else Recipe()).serve
    listen(
        load_any(model, which=one_of(which)),
        host or settings.host,
        settings.port if port is None else port,
        (*settings.hosts, *(host_name or ())),
        settings.batch_invariant if batch_invariant is None else batch_invariant,
    )


@app.command()
def compare(first: RunPath, second: RunPath, as_json: AsJson = False) -> None:
    """The scores of two runs side by side; refuses when they were not made alike."""
    from lmforge.evaluate.compare import compare as compare_runs

    result = compare_runs(first, second)
    if as_json:
        print_json(result)
        return
    table = Table("task", str(first), str(second), "difference", "95% interval", "p")
    for name, row in result["tasks"].items():
        interval = "" if row["low"] is None else f"{row['low']:+.4f} – {row['high']:+.4f}"
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.3g}"
        shown = (f"{row['first']:.4f}", f"{row['second']:.4f}", f"{row['difference']:+.4f}", interval, p_value)
        table.add_row(name, *shown)
    Console().print(table)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which backend each part uses on this machine, and why not the others."""
    from lmforge.plan.hardware import backends

    parts = backends()
    if as_json:
        print_json(parts)
        return
    table = Table("part", "uses here", "why")
    for part, row in parts.items():
        table.add_row(part, str(row["uses"]), str(row["why"]))
    Console().print(table)


def _version(show: bool) -> None:
    if show:
        print(f"lmforge {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    keep_freed_memory()


add_to(app)
add_evaluation(app, _print_results)


def main() -> None:
    """The console script: run a command, turn every expected error into one line and its exit status."""
    try:
        app()
    except LmforgeError as error:
        log(f"lmforge: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except MemoryError:
        log("lmforge: out of memory; lower train.micro_batch_tokens or the size of the model (lmforge plan shows both)")
        sys.exit(3)


if __name__ == "__main__":
    main()
