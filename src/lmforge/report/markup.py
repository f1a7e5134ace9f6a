"""HTML and numbers for people.

Text is escaped by construction: whatever is not already `Html` is escaped when it enters an element.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

Child = object  # a piece of Html, anything else (shown as escaped text), or None (shown as nothing)
MISSING = "–"
MOST_ROWS = 40
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_VOID = frozenset(("meta", "link", "br", "hr"))


class Html(str):
    """Markup that may stand on the page as it is. Only this module makes it, and `template` of its own style."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """One element. Attribute names lose a trailing `_`, and `_` becomes `-`; an attribute that is None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children one after another, each escaped unless it is markup."""
    return Html(
        "".join(child if isinstance(child, Html) else _escaped(child) for child in children if child is not None)
    )


def _escaped(value: object) -> str:
    """As text, without what an HTML file cannot carry: lone surrogates, and control characters other than tab and line
    ends."""
    text = str(value).encode("utf-8", "replace").decode()
    return escape(_CONTROL.sub("\ufffd", text))


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], numeric: Sequence[int] = ()) -> Html:
    """A table that scrolls sideways where it is too wide; columns in `numeric` are set flush right."""

    def row(kind: str, cells: Sequence[Child]) -> Html:
        return tag("tr", *(tag(kind, cell, class_="number" if i in numeric else None) for i, cell in enumerate(cells)))

    body = join(*(row("td", cells) for cells in rows))
    return tag("div", tag("table", tag("thead", row("th", head)), tag("tbody", body)), class_="wide")


def part(title: str, head: tuple[str, ...], rows: Sequence[Sequence[Child]], numeric: Iterable[int]) -> Html | None:
    """A table under its heading, of its first rows; nothing for none."""
    return join(tag("h3", title), table(head, rows[:MOST_ROWS], tuple(numeric))) if rows else None


def note(row: object, extra: str = "") -> Html:
    """The definition of a figure, and what else is to be said of it, in small print."""
    return tag("p", tag("small", " — ".join(each for each in (str(at(row, "definition") or ""), extra) if each)))


def plain(name: str) -> str:
    """near_duplicate → 'near duplicate'."""
    return name.replace("_", " ")


def details(summary: Child, *children: Child, opened: bool = False) -> Html:
    """A part that folds."""
    return tag("details", tag("summary", summary), *children, **({"open": "open"} if opened else {}))


def not_run(stage: str) -> Html:
    """What stands where a stage has left nothing."""
    return tag("p", "not run yet: ", tag("code", f"lmforge run RECIPE --until {stage}"), class_="missing")


# Values out of files that may hold anything. `path` names the way into nested dictionaries.


def at(value: object, *path: str) -> Any:
    """`value[path[0]][path[1]]…`, or None where there is no such thing."""
    for key in path:
        value = mapping(value).get(key)
    return value


def number(value: object, *path: str) -> float | None:
    """The value there where it is a finite number that a float can hold, else None."""
    there = at(value, *path)
    if isinstance(there, bool) or not isinstance(there, int | float):
        return None
    try:
        converted = float(there)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def mapping(value: object, *path: str) -> dict[str, Any]:
    """The value there where it is a dictionary, else an empty one."""
    there = at(value, *path) if path else value
    return there if isinstance(there, dict) else {}


def entries(value: object, *path: str) -> list[dict[str, Any]]:
    """The dictionaries in the value there where it is a list, else none."""
    there = at(value, *path)
    return [entry for entry in there if isinstance(entry, dict)] if isinstance(there, list) else []


def ordered(counts: object) -> list[tuple[str, Any]]:
    """The items of a dictionary of counts, the largest first, at most `MOST_ROWS`."""
    return sorted(mapping(counts).items(), key=lambda pair: (-(number(pair[1]) or 0), pair[0]))[:MOST_ROWS]


# Numbers in words


def count(value: object, *path: str) -> str:
    """1234567 → '1,234,567'."""
    amount = number(value, *path)
    return MISSING if amount is None else f"{amount:,.0f}"


def figure(value: object, *path: str, digits: int = 4) -> str:
    """Four significant digits: 1.6578 → '1.658', 12345.6 → '12,346'."""
    amount = number(value, *path)
    if amount is None:
        return MISSING
    if amount and not 1e-4 <= abs(amount) < 1e15:
        return f"{amount:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(amount)))) if amount else 0
    return f"{amount:,.{places}f}"


def percent(share: float | None) -> str:
    """0.0893 → '8.9%'."""
    return MISSING if share is None else f"{100 * share:.1f}%"


def metric(value: object, *path: str, unit: str = "") -> str:
    """SI prefixes: 2621440 → '2.62 M', with unit 'B' → '2.62 MB'."""
    amount = number(value, *path)
    if amount is None:
        return MISSING
    power = min(4, int(math.log10(abs(amount)) // 3)) if abs(amount) >= 1000 else 0
    scaled = amount / 1000**power
    shown = f"{scaled:.3g}" if abs(scaled) < 999.5 else f"{scaled:.0f}"
    return f"{shown} {('', 'k', 'M', 'G', 'T')[power]}{unit}".rstrip()


def size(value: object, *path: str) -> str:
    """Bytes: 10485760 → '10.5 MB'."""
    return metric(value, *path, unit="B")


def ratio(after: object, before: object) -> float | None:
    """after / before where both are numbers and before is not 0."""
    top, bottom = number(after), number(before)
    return None if top is None or not bottom else top / bottom


def abbreviated(digest: object, length: int = 10) -> Html:
    """The first characters of a hash; the whole of it on hovering."""
    text = str(digest or MISSING)
    return tag("code", text[:length], title=text if len(text) > length else None)
