"""docs/benchmarks.md: a table for each file of bench/results, with the command, machine and commit of its rows.

A benchmark's tables are described in tables.toml by the rows that they show and the figures of each. A results file
that has no description there is shown whole, figure by figure.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from bench.harness import FOLDER, HERE, Results

HEAD = """# Benchmarks

Every figure that a benchmark of lmforge made, as bench/results has it. `make figures` writes this page and each figure
in the other pages; a test fails where one differs. Below each table stand the command as it was typed then, the commit
(`+changes`: with changes that were not committed) and the machine, for each of its rows. AVX512 and AVX2 are the
kinds of vector units of a processor: a claim holds for the kind that it was measured on. Nothing here was measured on a
GPU. What was tried and failed is in the [log](internals/log.md).
"""
FORM = re.compile(r"(?P<form>.*?)\s*(?:(?P<inverse>1÷)|(?P<sign>[×÷])(?P<factor>[\d.e]+))?")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a results file as a table.

    `rows` is a path to a mapping or list whose members are the rows, or to one row. Columns are "title|path|format" as
    `shown` takes it; without columns all figures of one row are listed.
    """

    rows: str
    columns: Sequence[str] = ()
    caption: str = ""
    label: str = ""  # title of the first column, or the figure that it shows for members of a list


@dataclasses.dataclass(frozen=True)
class Section:
    """A benchmark's heading, a sentence on what was compared, and its tables."""

    title: str
    about: str
    tables: tuple[Table, ...]


def sections() -> dict[str, Section]:
    """The benchmarks that tables.toml describes, in its order."""
    described = tomllib.loads((HERE / "tables.toml").read_text(encoding="utf-8"))
    return {
        name: Section(each["title"], each["about"], tuple(Table(**table) for table in each["tables"]))
        for name, each in described.items()
    }


def shown(number: Any, form: str) -> str:
    """A figure in a format of Python, which a scale may follow: `.1f ×100`, `,.0f ÷1e6`, `.0f 1÷` (1 over it)."""
    match = FORM.fullmatch(form)
    assert match is not None
    if match["inverse"]:
        number = 1 / number
    elif match["sign"]:
        number = number * float(match["factor"]) if match["sign"] == "×" else number / float(match["factor"])
    if isinstance(number, bool):
        return "yes" if number else "no"
    return format(number, match["form"].strip())


def at(figures: Any, path: str) -> Any:
    """The figure at a path, None where there is none."""
    for part in filter(None, path.split("/")):
        try:
            figures = figures[int(part)] if isinstance(figures, list) else figures[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return figures


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(number: Any) -> str:
    """A figure whose format nobody described: four digits."""
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.4g}" if isinstance(number, float) else str(number).replace("|", "\\|").replace("\n", " ")


def scalars(figures: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, figure) of everything below that is no list."""
    if isinstance(figures, dict):
        for name, value in figures.items():
            yield from scalars(value, f"{path}/{name}" if path else str(name))
    elif not isinstance(figures, list):
        yield path, figures


def cells(row: Any, columns: Sequence[str]) -> tuple[str, ...]:
    """A row's figures; nothing where one is not there."""
    split = [column.split("|") for column in columns]
    row = row[0] if isinstance(row, list) and len(row) == 1 else row  # measured once, where it may be repeated
    numbers = [(at(row, path), form) for _, path, form in split]
    return tuple("" if number is None else shown(number, form) for number, form in numbers)


def as_markdown(table: Table, figures: Any) -> str:
    """One table; nothing where the results have none of its rows."""
    rows = at(figures, table.rows)
    if rows is None:
        return ""
    caption = f"{table.caption}\n\n" if table.caption else ""
    if not table.columns:
        listed = [(name, plain(number)) for name, number in rows.items() if not isinstance(number, dict | list)]
        return caption + markdown(("figure", "value"), listed) if listed else ""
    head = tuple(column.split("|")[0] for column in table.columns)
    if not table.label:
        return caption + markdown(head, [cells(rows, table.columns)])
    named = [(str(row[table.label]), row) for row in rows] if isinstance(rows, list) else list(rows.items())
    lines = [(name if not name.isdigit() else f"{int(name):,}", *cells(row, table.columns)) for name, row in named]
    filled = [line for line in lines if any(line[1:])]
    return caption + markdown((table.label, *head), filled) if filled else ""


def command_of(name: str) -> str:
    """How the benchmark is run today."""
    files = sorted(HERE.glob(f"*/{name}.py"))
    return f"python -m bench.{files[0].parent.name}.{name}" if files else ""


def measured(results: Results) -> str:
    """Which rows were made by which command, at which commit, on which machine and day."""
    stamps: dict[tuple[str, ...], list[str]] = {}
    for name, row in results.rows().items():
        stamp = (row["command"], row["commit"], row["machine"], row.get("day") or "before 30 November 2026")
        stamps.setdefault(stamp, []).append(name)
    lines = []
    for (command, commit, machine, day), names in stamps.items():
        which = "" if len(stamps) == 1 else f"{', '.join(names)}: "
        lines.append(f"- {which}`{command or 'not stated'}`, commit {commit}, {machine}, {day}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/benchmarks.md."""
    files = {path.stem for path in FOLDER.glob("*.json")}
    described = sections()
    parts = [HEAD]
    for name in [*(name for name in described if name in files), *sorted(files - described.keys())]:
        results = Results(name)
        figures = results.figures()
        section = described.get(name, Section(name.replace("_", " ").capitalize(), "", ()))
        tables = [as_markdown(table, figures) for table in section.tables]
        if not section.tables:
            tables = [markdown(("figure", "value"), [(path, plain(number)) for path, number in scalars(figures)])]
        about = textwrap.fill(section.about, 120)
        again = f"Run it: `{command_of(name)}`." if command_of(name) else ""
        texts = [f"{text}\n" for text in (f"## {section.title}", about, again) if text]
        parts.append("\n".join([*texts, *filter(None, tables), measured(results)]))
    return "\n".join(parts)
