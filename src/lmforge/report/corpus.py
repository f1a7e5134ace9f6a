"""The part of the page that tells of the corpus: what was kept, how many bits a word and a byte carry, and what it
covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lmforge.report.duplicates import contamination, duplicates, synthetic, trained_filters
from lmforge.report.loaded import LoadedRun
from lmforge.report.markup import (
    MISSING,
    Html,
    at,
    count,
    details,
    entries,
    figure,
    join,
    mapping,
    metric,
    not_run,
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
)
from lmforge.report.plots import Point, Series, bar_chart, line_chart, logarithmic, share_bar
from lmforge.report.scores import entropy

# what the description of the model that lmforge is planned after says of its test text; not measured here
CLAIMED_BITS_PER_WORD = 5.11
ORDERS = range(1, 6)
CORRECTIONS = {
    "plug_in": "without correction",
    "miller_madow": "Miller 1955: too low where half of the words are seen once",
    "chao_shen": "Chao and Shen 2003: for what was not seen",
}
ENTITIES = {"person": "people", "place": "places", "organisation": "organisations", "date": "dates"}
_MOST_LABELS = 12
_MOST_REASONS = 12
_LEAST_SHARE = 0.005  # of a language that is named
_POWERS = frozenset(map(str, range(50)))


def corpus(run: LoadedRun) -> Html:
    """Documents in and out, why some were dropped, lengths, genres, entropy, words, readability, topics, entities."""
    facts = mapping(run.json("corpus", "statistics.json")) or run.figures("corpus")
    if not facts:
        return not_run("corpus")
    numbers = f"{count(facts, 'documents_in')} documents in, {count(facts, 'documents_out')} out"
    link = tag("a", "Samples of what was kept and dropped", href="corpus/samples.html")
    notices = [(name, count(amount)) for name, amount in ordered(facts.get("notices"))]
    analysis = mapping(facts, "analysis")
    return join(
        tag("p", f"{numbers}: {size(facts, 'bytes_out')}, {count(facts, 'words')} words."),
        tag("p", link) if run.exists("corpus", "samples.html") else None,
        _sizes(facts),
        _genres(facts, mapping(analysis, "genres")),
        _entropy(run, facts, analysis),
        _vocabulary(facts, analysis),
        _prose(analysis),
        _topics(mapping(analysis, "topics")),
        _entities(mapping(analysis, "entities")),
        duplicates(mapping(facts, "overlap")),
        contamination(mapping(facts, "decontamination")),
        trained_filters(mapping(facts, "filters")),
        synthetic(mapping(facts, "synthetic")),
        _sampled(analysis),
        details("Passed over or repaired while reading", table(("what", "files"), notices, (1,))) if notices else None,
    )


def _sizes(facts: dict[str, Any]) -> Html:
    total = facts.get("documents_in")
    reasons = [
        (plain(name), count(amount), percent(ratio(amount, total))) for name, amount in ordered(facts.get("dropped"))
    ]
    splits = [(name, count(row, "documents"), size(row, "bytes")) for name, row in mapping(facts, "splits").items()]
    head = ("reason", "documents", "share")
    dropped = table(head, reasons[:_MOST_REASONS], (1, 2)) if reasons else tag("p", "nothing was dropped")
    rest = details("Rarer reasons", table(head, reasons[_MOST_REASONS:], (1, 2))) if reasons[_MOST_REASONS:] else None
    return tag(
        "div",
        tag(
            "div",
            bar_chart("Documents by length", _lengths(facts), "bytes from (each bar: up to twice that)", "documents"),
            part("Split by hash", ("split", "documents", "text"), splits, (1, 2)),
        ),
        tag("div", tag("h3", "Dropped, by reason"), dropped, rest),
        class_="plots",
    )


def _genres(facts: dict[str, Any], told: dict[str, Any]) -> Html | None:
    """Shares of the text, and how well a classifier tells the genres apart."""
    text = facts.get("bytes_out")
    shares = [(name, row, ratio(at(row, "bytes"), text)) for name, row in mapping(facts, "genres").items()]
    rows = [
        (name, count(row, "documents"), size(row, "bytes"), percent(share), share_bar(share))
        for name, row, share in shares
    ]
    first = part("Genres", ("genre", "documents", "text", "share", ""), rows, (1, 2, 3))
    accuracy = number(told, "accuracy")
    if accuracy is None:
        return first
    names = list(mapping(told, "confusion"))[:_MOST_LABELS]
    cells = [
        (true, *(tag("b", count(row, name)) if name == true else count(row, name) for name in names))
        for true, row in mapping(told, "confusion").items() if true in names
    ]  # fmt: skip
    words = (
        f"Told apart by their text alone: {percent(accuracy)} right "
        f"({percent(number(told, 'low'))} to {percent(number(told, 'high'))}, {count(told, 'sample_documents')} "
        "held-out documents; "
        f"always saying the commonest: {percent(number(told, 'most_frequent'))})."
    )
    second = tag(
        "div",
        tag("h3", "Genre classifier: true (rows) and told (columns)"),
        table(("", *names), cells, range(1, len(names) + 1)),
        tag("p", tag("small", words)),
    )
    return join(first, second)


def _entropy(run: LoadedRun, facts: dict[str, Any], analysis: dict[str, Any]) -> Html | None:
    rows = {**mapping(facts, "entropy"), **mapping(analysis, "entropy")}
    bits, held_out_bytes = entropy(run)
    bytes_per_word = ratio(at(rows, "words_order_1", "bits_per_word"), at(rows, "words_order_1", "bits_per_byte"))
    own = bits * bytes_per_word if bits is not None and bytes_per_word is not None else None
    shown = _estimates(rows)
    if bits is not None:
        shown.append(
            (
                "the trained model",
                figure(own),
                figure(bits),
                "bits per byte of the test split; per word: times the bytes per word of the held-out sample, white "
                "space included",
                f"{count(held_out_bytes)} bytes",
            )
        )
    shown.append(
        (
            "claimed elsewhere",
            figure(CLAIMED_BITS_PER_WORD, digits=3),
            MISSING,
            "what the description of the 1.2 T model claims for its own corpus; cited, not measured here",
            MISSING,
        )
    )
    if not rows:
        return None
    words = [
        Series("words, n-gram", _orders(rows, "words", "bits_per_word"), dots=True),
        *_level("the trained model", own),
        *_level("claimed elsewhere", CLAIMED_BITS_PER_WORD),
    ]
    data = [
        Series("bytes, n-gram", _orders(rows, "bytes", "bits_per_byte"), dots=True),
        *_level("the trained model", bits),
        *_level("LZMA", number(rows, "lzma", "value")),
        *_level("context mixing", number(rows, "context_mixing", "value")),
    ]
    charts = [
        line_chart(
            f"Bits per {what}, by how many before it are known",
            lines,
            f"order (1: no {what} before)",
            _whole,
            _short,
            from_zero=True,
        )
        for what, lines in (("word", words), ("byte", data))
    ]
    head = ("measure", "bits per word", "bits per byte", "definition", "measured on")
    return join(
        tag("h3", "Entropy"),
        tag("div", *charts, class_="plots") if words[0].points else None,
        details("Every estimate, with its definition and sample", table(head, shown, (1, 2)), opened=True),
    )


def _estimates(rows: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Every estimate of the corpus's own, each followed by its corrections."""
    shown: list[tuple[object, ...]] = []
    for name, row in rows.items():
        if mapping(row):
            shown.append((_entropy_name(name), *_both(row), at(row, "definition"), _sample(row)))
            per_byte = ratio(at(row, "bits_per_byte"), at(row, "bits_per_word"))
            shown += [
                (
                    tag("small", plain(other)),
                    figure(row, other),
                    figure(_times(number(row, other), per_byte)),
                    definition,
                    "",
                )
                for other, definition in CORRECTIONS.items()
                if number(row, other) is not None
            ]
    return shown


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _both(row: object) -> tuple[str, str]:
    if "bits_per_word" in mapping(row):
        return figure(row, "bits_per_word"), figure(row, "bits_per_byte")
    return figure(row, "value"), MISSING


def _entropy_name(name: str) -> str:
    return plain(name.replace("_order_", ", order ")).replace("lzma", "LZMA")


def _orders(rows: dict[str, Any], what: str, unit: str) -> list[Point]:
    values = ((order, number(rows, f"{what}_order_{order}", unit)) for order in ORDERS)
    return [(float(order), value) for order, value in values if value is not None]


def _level(name: str, value: float | None) -> list[Series]:
    return [] if value is None else [Series(name, [(1.0, value)], flat=True)]


def _whole(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 1e-6 else ""


def _short(value: float) -> str:
    return f"{value:g}"


def _vocabulary(facts: dict[str, Any], analysis: dict[str, Any]) -> Html | None:
    zipf, heaps, types = mapping(facts, "zipf"), mapping(analysis, "heaps"), mapping(analysis, "type_token")
    if not (zipf or heaps):
        return None
    listed = (each.get("points") for each in (heaps, zipf))
    measured, ranks = (
        [pair for pair in map(_pair, points if isinstance(points, list) else []) if pair] for points in listed
    )
    drawn = [
        (x, y)
        for row in entries(facts, "vocabulary_growth")
        if (x := number(row, "words")) and (y := number(row, "distinct"))
    ]
    growth = [
        Series("documents read one after another", _powers(measured)),
        Series("words drawn at random from all", _powers(drawn)),
    ]
    labels = logarithmic(metric)
    charts = (
        line_chart("Vocabulary growth (Heaps)", growth, "words read", labels, labels),
        line_chart("Words by rank (Zipf)", [Series("count", _powers(ranks))], "rank", labels, labels),
    )
    repeated = mapping(analysis, "repetition")
    rows = [
        (
            "distinct words",
            count(facts, "distinct_words"),
            "runs of non-space characters" + ("" if facts.get("words_exact", True) else ", estimated"),
            f"{count(facts, 'words')} words",
        ),
        (
            "of these seen once",
            percent(ratio(facts.get("words_seen_once"), facts.get("distinct_words"))),
            "share of the distinct words",
            f"{count(facts, 'words')} words",
        ),
        ("Zipf's exponent", figure(zipf, "value"), at(zipf, "definition"), _sample(zipf)),
        ("Heaps' exponent", figure(heaps, "value"), at(heaps, "definition"), _sample(heaps)),
        ("types per token", figure(types, "value", digits=3), at(types, "definition"), _sample(types)),
        *(
            (plain(name), percent(number(row, "value")), at(row, "definition"), _sample(row))
            for name, row in repeated.items()
        ),
    ]
    return join(
        tag("h3", "Words"),
        tag("div", *charts, class_="plots"),
        table(("figure", "value", "definition", "measured on"), rows, (1,)),
    )


def _pair(value: object) -> Point | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    x, y = number(value[0]), number(value[1])
    return (x, y) if x is not None and y is not None else None


def _powers(points: Iterable[Point]) -> list[Point]:
    return sorted((math.log10(x), math.log10(y)) for x, y in points if x > 0 and y > 0)


def _prose(analysis: dict[str, Any]) -> Html | None:
    """Readability by genre, and languages."""
    told, languages = mapping(analysis, "readability"), mapping(analysis, "languages")
    names = (
        "flesch_reading_ease",
        "flesch_kincaid_grade",
        "automated_readability_index",
        "words_per_sentence",
        "syllables_per_word",
    )
    parts = {"all prose": told, **mapping(told, "genres")}
    rows = [
        (name, *(figure(row, key, digits=3) for key in names), count(row, "sample_words"))
        for name, row in parts.items()
        if number(row, "sample_words")
    ]
    shares = sorted(
        ((name, number(share) or 0.0) for name, share in mapping(languages, "shares").items()),
        key=lambda pair: -pair[1],
    )
    spoken = [
        (name, percent(share), share_bar(share)) for name, share in shares[:_MOST_LABELS] if share >= _LEAST_SHARE
    ]
    head = ("", "Flesch ease", "Kincaid grade", "ARI", "words a sentence", "syllables a word", "words")
    left = part("Readability", head, rows, range(1, 7)) if rows else None
    right = part("Languages", ("language", "share", ""), spoken, (1,)) if spoken else None
    return join(
        left,
        note(told) if rows else None,
        right,
        note(languages, f"{count(languages, 'sample_pieces')} pieces") if spoken else None,
    )


def _topics(model: dict[str, Any]) -> Html | None:
    rows = []
    for topic in entries(model, "topics"):
        words, share = topic.get("words"), number(topic, "share")
        listed = ", ".join(map(str, words)) if isinstance(words, list) else MISSING
        coherent = figure(topic, "npmi", digits=2), figure(topic, "umass", digits=3)
        rows.append((tag("b", topic.get("name")), percent(share), share_bar(share), listed, *coherent))
    head = ("topic", "share", "", "heaviest words", "NPMI", "UMass")
    means = f"mean NPMI {figure(model, 'npmi', digits=2)}, UMass {figure(model, 'umass', digits=3)}"
    told = note(model, f"{count(model, 'sample_pieces')} pieces; {means}")
    return join(part("Topics", head, rows, (1, 4, 5)), told) if rows else None


def _entities(entities: dict[str, Any]) -> Html | None:
    rows = []
    for kind, plural in ENTITIES.items():
        row = mapping(entities, kind)
        top = row.get("top")
        pairs = [pair for pair in top if isinstance(pair, list) and len(pair) == 2] if isinstance(top, list) else []
        most = ", ".join(f"{name} ({count(times)})" for name, times in pairs)
        if row:
            rows.append((plural, count(row, "distinct"), count(row, "mentions"), count(row, "at_least"), most))
    head = ("named", "distinct", "mentions", "at least, in endless text", "most frequent")
    return (
        join(part("Entities", head, rows, (1, 2, 3)), note(entities, f"{size(entities, 'sample_bytes')} of prose"))
        if rows
        else None
    )


def _sampled(analysis: dict[str, Any]) -> Html | None:
    sample = mapping(analysis, "sample")
    parts = [
        f"{plain(name)}: {size(row, 'bytes')} in {count(row, 'pieces')} pieces of {count(row, 'documents')} documents"
        for name, row in sample.items()
        if mapping(row)
    ]
    return tag("p", tag("small", f"Sampled — {'; '.join(parts)}. {sample.get('definition', '')}")) if parts else None


def _sample(row: object) -> str:
    sizes = (pair for pair in mapping(row).items() if pair[0].startswith("sample_"))
    return ", ".join(f"{count(value)} {plain(name.removeprefix('sample_'))}" for name, value in sizes)


def _lengths(facts: dict[str, Any]) -> list[tuple[str, float]]:
    """The histogram's bars; statistics.json names each by the power of two that its lengths begin at."""
    bars = ((int(power), number(amount)) for power, amount in mapping(facts, "lengths").items() if power in _POWERS)
    return [(_power(power), amount) for power, amount in sorted(bars) if amount is not None]


def _power(power: int) -> str:
    return f"{1 << power % 10} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power // 10]}"
