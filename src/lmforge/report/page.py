"""A run's whole story on one HTML page that needs nothing else: no request, no script, light and dark.

    files of the run ─▶ Run (read leniently) ─▶ headline, stages, one section a stage, recipe, lineage ─▶ report.html

What a stage has not left yet is shown as "not run yet". The page is a function of the run's other files alone, so
writing it twice gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from lmforge.errors import InputError
from lmforge.evaluate.harness import headlines
from lmforge.progress import format_duration
from lmforge.record import write_atomic
from lmforge.report import sections, template
from lmforge.report.corpus import corpus
from lmforge.report.loaded import LoadedRun
from lmforge.report.markup import (
    Html,
    at,
    count,
    entries,
    figure,
    join,
    mapping,
    metric,
    number,
    ratio,
    size,
    table,
    tag,
)
from lmforge.report.scores import cards, scores

STAGES = {"corpus": "corpus", "tokens": "tokens", "train": "training", "compress": "compression", "evaluate": "scores"}


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from what the run has left so far and return its path.

    Raises:
        InputError: there is no such folder, or it cannot be written to.
        LmforgeError: the disk is full.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no run here; give the folder of a run, such as runs/laptop")
    run = LoadedRun(run_dir)
    parts = {
        "stages": ("Stages", _stages(run)),
        "corpus": ("Corpus", corpus(run)),
        "tokens": ("Tokens", sections.tokens(run)),
        "training": ("Training", sections.training(run)),
        "compression": ("Compression", sections.compression(run)),
        "scores": ("Scores", scores(run)),
        "recipe": ("Recipe", sections.recipe(run)),
        "lineage": ("Lineage", sections.lineage(run)),
    }
    links = (tag("a", title, href=f"#{anchor}") for anchor, (title, _) in parts.items())
    header = tag("header", tag("h1", run.name), tag("p", _lead(run), class_="lead"), _cards(run), tag("nav", *links))
    body = (template.section(anchor, title, content) for anchor, (title, content) in parts.items())
    footer = tag("footer", "Written by lmforge from the files of this run; it loads nothing from elsewhere.")
    path = run_dir / "report.html"
    write_atomic(path, template.page(f"{run.name} · lmforge", header, "\n", tag("main", *body), "\n", footer))
    return path


def _lead(run: LoadedRun) -> str:
    """One sentence on what this is."""
    shape = mapping(run.json("model", "config.json"), "architecture")
    if not shape:
        return "A language model in the making: text → tokens → model → smaller model → scores."
    kept = run.json("corpus", "statistics.json")
    text = f", learned from {size(kept, 'bytes_out')} of text" if number(kept, "bytes_out") else ""
    layers, width, context, vocabulary = (count(shape, key) for key in ("layers", "d_model", "context", "vocab_size"))
    return f"A GPT of {layers} layers, width {width}, context {context}, vocabulary {vocabulary}{text}."


def _cards(run: LoadedRun) -> Html:
    train = run.figures("train")
    seconds = number(train, "seconds")
    steps = run.compression_steps()
    first, last = (steps[0], steps[-1]) if steps else ({}, {})
    before, after = (at(step, "decode_tokens_per_second", "1") for step in (first, last))
    smaller, faster = ratio(last.get("file_bytes"), first.get("file_bytes")), ratio(after, before)
    return tag(
        "div", *_score_cards(run),
        _card("parameters", metric(train, "parameters"), f"{metric(train, 'tokens')} tokens seen" if train else None),
        _card("training time", format_duration(seconds) if seconds is not None else None,
              f"{count(train, 'tokens_per_second')} tokens/s" if train else None),
        _card("file size", f"{size(first, 'file_bytes')} → {size(last, 'file_bytes')}" if steps else None,
              f"{figure(smaller, digits=3)}× after compression" if smaller is not None else None),
        _card("decoding, batch 1", f"{count(before)} → {count(after)}" if steps else None,
              f"tokens/s, {figure(faster, digits=3)}× after compression" if faster is not None else None),
        class_="cards",
    )  # fmt: skip


def _card(name: str, value: str | None, note: object = None) -> Html:
    return tag(
        "div", tag("span", name), tag("b", value or "not run yet"), tag("span", note) if note else None, class_="card"
    )


def _score_cards(run: LoadedRun) -> list[Html]:
    """What the scores say first; until there are any, the validation text's figure."""
    shown = [
        _card(
            card.title,
            figure(card.value),
            join(
                tag("b", card.verdict, class_="good" if card.good else "bad", style="font-size: 1em; display: inline"),
                f" {card.note}",
            )
            if card.verdict
            else card.note,
        )
        for card in cards(run)
    ]
    if shown:
        return shown
    valid = number(run.figures("train").get("valid_bits_per_byte"))
    if valid is None:
        return [_card("bits per byte", None)]
    return [_card("bits per byte, validation text", figure(valid), "the test text is not scored yet")]


def _stages(run: LoadedRun) -> Html:
    rows: list[tuple[object, ...]] = []
    for name, anchor in STAGES.items():
        state, seconds = run.state(name), number(run.stage(name).get("seconds"))
        shown = tag("span", state, class_="good" if state == "done" else "missing")
        took = format_duration(seconds) if seconds is not None else None
        rows.append((tag("a", name, href=f"#{anchor}"), shown, took, key_figure(name, run.figures(name))))
    return table(("stage", "state", "time", "key figure"), rows, numeric=(2,))


def key_figure(stage: str, figures: dict[str, object]) -> str:
    """The one figure of a stage worth a line, in words; empty where it left none."""
    if not figures:
        return ""
    if stage == "corpus":
        kept = f"{count(figures, 'documents_out')} of {count(figures, 'documents_in')} documents"
        return f"{kept}, {size(figures, 'bytes_out')}"
    if stage == "tokens":
        return f"{count(figures, 'tokens_train')} tokens, {figure(figures, 'bytes_per_token', digits=3)} bytes each"
    if stage == "train":
        bits = f"{figure(figures, 'valid_bits_per_byte')} bits per byte (validation)"
        return f"{bits}, {count(figures, 'tokens_per_second')} tokens/s"
    if stage == "compress":
        steps = entries(figures, "steps")
        first, last = (steps[0], steps[-1]) if steps else ({}, {})
        smaller = ratio(last.get("file_bytes"), first.get("file_bytes"))
        faster = ratio(at(last, "decode_tokens_per_second", "1"), at(first, "decode_tokens_per_second", "1"))
        return f"{figure(smaller, digits=3)}× the bytes, {figure(faster, digits=3)}× the decoding speed"
    if stage == "evaluate":
        return headlines(mapping(figures, "tasks"))
    return ""
