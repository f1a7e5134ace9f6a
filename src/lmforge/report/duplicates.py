"""The part of the page that tells what was said twice, what was kept out, what learned filters did, and what was
made."""

from __future__ import annotations

from typing import Any

from lmforge.report.markup import (
    Html,
    at,
    count,
    details,
    entries,
    figure,
    join,
    mapping,
    note,
    number,
    ordered,
    part,
    percent,
    plain,
    ratio,
    size,
    table,
    tag,
)  # fmt: skip

_SHOWN = 5  # pairs of near duplicates
_CHARACTERS = 160  # of each
_BANDS = ((2, 2), (3, 3), (4, 9), (10, 99), (100, 1 << 62))  # cluster sizes, from and to


def duplicates(overlap: dict[str, Any]) -> Html | None:
    """Exact and near duplicates, and lines that many documents repeat."""
    rows = [
        (
            name,
            count(row, "documents"),
            percent(number(row, "share")),
            _clusters(mapping(row, "cluster_sizes")),
            at(row, "definition"),
        )
        for name, row in (("exact", mapping(overlap, "exact")), ("near", mapping(overlap, "near")))
        if row
    ]
    lines = mapping(overlap, "lines")
    if number(lines, "least_documents"):
        words = f"{count(lines, 'removed')} lines ({size(lines, 'bytes')}) out of {count(lines, 'documents')} documents"
        rows.append(
            ("lines", words, "", "", f"lines that stand in {count(lines, 'least_documents')} documents or more")
        )
    pairs = [
        (figure(pair, "similarity", digits=3), _start(at(pair, "kept", "text")), _start(at(pair, "dropped", "text")))
        for pair in entries(overlap, "near", "pairs")[:_SHOWN]
    ]
    repeated = [(str(count(entry, "documents")), _start(at(entry, "line"))) for entry in entries(lines, "examples")]
    if not rows:
        return None
    return join(
        part("Duplicates", ("kind", "removed", "share", "clusters of so many documents", "definition"), rows, (2,)),
        note({}, f"of {count(overlap, 'compared')} documents compared"),
        details("Some near duplicates", table(("likeness", "kept", "removed"), pairs, (0,))) if pairs else None,
        details("Lines most repeated", table(("documents", "line"), repeated, (0,))) if repeated else None,
    )


def _clusters(sizes: dict[str, Any]) -> str:
    """{"2": 5, "3": 1, "12": 1} → '5 of 2, 1 of 3, 1 of 10 to 99'."""
    known = [(int(name), int(number(amount) or 0)) for name, amount in sizes.items() if name.isdigit()]
    bands = [(low, high, sum(amount for each, amount in known if low <= each <= high)) for low, high in _BANDS]
    names = {
        low: f"{low}" if low == high else f"{low} or more" if high > 99 else f"{low} to {high}" for low, high in _BANDS
    }
    return ", ".join(f"{amount:,} of {names[low]}" for low, _, amount in bands if amount)


def _start(text: object) -> str:
    words = " ".join(str(text or "").split())
    return words if len(words) <= _CHARACTERS else f"{words[:_CHARACTERS]} …"


def contamination(figures: dict[str, Any]) -> Html | None:
    """What was found of each benchmark, and how well planted copies of its texts are found."""
    if not number(figures, "benchmarks"):
        return None
    texts = mapping(figures, "texts")
    packs = [(name, count(amount)) for name, amount in ordered(figures.get("found"))]
    planted = [
        (
            name,
            count(row, "items"),
            percent(number(row, "recall")),
            percent(number(row, "precision")),
            at(row, "definition"),
        )
        for name, row in mapping(figures, "planted").items()
    ]
    words = (
        f"{count(figures, 'documents')} documents held a text of one of {count(figures, 'benchmarks')} benchmark files "
        "and were left out. Of their texts "
        f"{count(texts, 'windowed')} are looked for by any run of 50 letters, {count(texts, 'short')} whole, "
        f"{count(texts, 'lines')} as a line by "
        f"themselves, {count(texts, 'too_short')} are too short to tell."
    )
    listed = table(("benchmark", "documents left out"), packs, (1,)) if packs else None
    left = tag("div", tag("h3", "Benchmark texts kept out"), tag("p", words), listed)
    right = tag(
        "div",
        part("Planted copies found", ("planted", "texts", "recall", "precision", "how"), planted, (1, 2, 3)),
        note({}, "precision against the same words in another order, planted alike"),
    )
    return tag("div", left, right, class_="plots")


def trained_filters(filters: dict[str, Any]) -> Html | None:
    """What the filters that were trained for this corpus are, and how well they do."""
    rows = [
        (
            plain(name),
            "; ".join(
                f"{plain(key)} {figure(value) if isinstance(value, float) else value}"
                for key, value in mapping(row).items()
            ),
        )
        for name, row in filters.items()
    ]
    return part("Trained filters", ("filter", "what is known of it"), rows, ())


def synthetic(figures: dict[str, Any]) -> Html | None:
    """Documents that were made: how many, by which method, and how near paraphrases are to their texts."""
    rows = []
    for name, row in mapping(figures, "methods").items():
        likeness, skipped = mapping(row, "likeness"), mapping(row, "skipped")
        told = [f"{plain(key)} {figure(value, digits=3)}" for key, value in likeness.items()]
        told += [f"passed over: {plain(key)} {count(value)}" for key, value in skipped.items()]
        rows.append(
            (
                plain(name),
                count(row, "documents"),
                size(row, "bytes"),
                percent(ratio(at(row, "bytes"), figures.get("bytes"))),
                percent(number(row, "share")),
                "; ".join(told),
            )
        )
    head = (
        "method",
        "documents",
        "text",
        "share of what was made",
        "share of the training text",
        "likeness to the texts, and what was passed over",
    )
    return part("Synthetic documents", head, rows, range(1, 5))
