"""What came out of each stage, in a few words for the terminal."""

from __future__ import annotations

from typing import Any

from lmforge.evaluate.harness import headlines

Figures = dict[str, Any]


def no_summary(_figures: Figures) -> str:
    """A stage without a key figure."""
    return ""


def corpus_summary(figures: Figures) -> str:
    """Documents and bytes, and what of the sources was not read."""
    kept, read = figures["documents_out"], figures["documents_in"]
    return f"{kept:,} of {read:,} documents, {figures['bytes_out'] / 1e6:.1f} MB{_not_read(figures.get('skipped', {}))}"


def _not_read(skipped: dict[str, int]) -> str:
    """What of the sources was not read, the most frequent first."""
    if not skipped:
        return ""
    ordered = sorted(skipped.items(), key=lambda each: -each[1])
    named = ", ".join(f"{count:,} {reason}" for reason, count in ordered[:3])
    return f"; not read: {named}{', …' if len(ordered) > 3 else ''} (statistics.json)"


def tokens_summary(figures: Figures) -> str:
    """Tokens and what each stands for."""
    return f"{figures['tokens_train']:,} tokens, {figures['bytes_per_token']:.2f} bytes each"


def train_summary(figures: Figures) -> str:
    """How good, and how fast."""
    if not figures["steps"]:
        return f"the base as it is: {figures['valid_bits_per_byte']:.3f} bits per byte (validation)"
    bits, speed = figures["valid_bits_per_byte"], figures["tokens_per_second"]
    return f"{bits:.3f} bits per byte (validation), {speed:,} tokens/s"


def compress_summary(figures: Figures) -> str:
    """Bytes and speed against the model before."""
    first, last = figures["steps"][0], figures["steps"][-1]
    faster = last["decode_tokens_per_second"]["1"] / first["decode_tokens_per_second"]["1"]
    return f"{last['file_bytes'] / first['file_bytes']:.3f}× the bytes, {faster:.2f}× the decoding speed"


def evaluate_summary(figures: Figures) -> str:
    """What each task says of itself in a line."""
    return headlines(figures["tasks"])


def report_summary(figures: Figures) -> str:
    """Where the page is."""
    return str(figures.get("page", ""))
