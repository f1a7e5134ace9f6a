"""Write every figure that a benchmark made into README and docs, from bench/results.

    python -m bench.figures [--check]

Two kinds of places are written, all else is left as it is:

    <!--= int8: d_model 384, 6 layers/decode_1/ratio | .2f -->1.50<!--=-->      one value
    <!-- figures: NAME --> … <!-- /figures -->                                  a block that a function here makes

A value's path goes through the rows of bench/results/FILE.json and then through the figures of that row; after `|` a
format of Python, to which `×100` may be added. `--check` writes nothing and fails when a place differs from its file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import FOLDER, ROOT, Results

VALUE = re.compile(r"(<!--= *([\w]+): *(.+?) *\| *([^|]*?) *-->)(.*?)(<!--=-->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[], str]] = {}


def block(make: Callable[[], str]) -> Callable[[], str]:
    """Registers the function that makes the block of its name."""
    BLOCKS[make.__name__] = make
    return make


def value(benchmark: str, path: str) -> Any:
    """The figure at `path` (parts divided by `/`) in bench/results/`benchmark`.json.

    Raises:
        KeyError: there is none; the message names file and part.
    """
    at: Any = Results(benchmark).figures()
    for part in path.split("/"):
        try:
            at = at[int(part)] if isinstance(at, list) else at[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            there = list(at) if isinstance(at, dict) else f"a list of {len(at)}" if isinstance(at, list) else at
            raise KeyError(f"bench/results/{benchmark}.json: no '{part}' of '{path}'; there is: {there}") from error
    return at


def shown(number: Any, form: str) -> str:
    """A figure in a format of Python; `×100` after it makes a share a percentage."""
    scaled = number * 100 if form.endswith("×100") else number
    return format(scaled, form.removesuffix("×100").strip())


def filled(text: str) -> str:
    """A page with all of its figures as the results have them."""
    text = VALUE.sub(lambda m: m[1] + shown(value(m[2], m[3]), m[4]) + m[6], text)
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]]().rstrip("\n") + "\n" + m[4], text)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@block
def measured_where() -> str:
    """Each results file: which command, commit, machine and day its rows are of."""
    rows = []
    for path in sorted(FOLDER.glob("*.json")):
        stamps = {}
        for row in Results(path.stem).rows().values():
            key = (row["command"].split(" ")[0:3], row["commit"], row["machine"])
            stamps[str(key)] = (
                row["command"],
                row["commit"],
                row["machine"],
                row.get("day", "before 30 November 2026"),
            )
        for command, commit, machine, day in stamps.values():
            rows.append((f"`{path.name}`", f"`{command}`" if command else "", commit, machine, day))
    return table(("results", "command", "commit", "machine", "day"), rows)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    arguments = parser.parse_args()
    changed = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        right = filled(text)
        if right != text:
            changed.append(page.relative_to(ROOT))
            if not arguments.check:
                page.write_text(right, encoding="utf-8")
    for page in changed:
        print(f"{page}: {'differs from bench/results; run: make figures' if arguments.check else 'written'}")
    sys.exit(bool(changed) and arguments.check)


if __name__ == "__main__":
    main()
