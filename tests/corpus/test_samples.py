"""samples.html: a random choice that no order of input changes, every text escaped."""

from __future__ import annotations

import hashlib
import random

from lmforge.corpus.samples import KEPT, PER_REASON, SHOWN, Samples
from lmforge.corpus.sources.kinds import Document


def document(number: int, text: str = "") -> Document:
    return {"id": f"d{number}", "text": text or f"text {number}", "source": "folder:x", "genre": "books", "meta": {}}


def page(numbers: list[int]) -> str:
    samples = Samples()
    for number in numbers:
        samples.keep(document(number), hashlib.sha256(b"%d" % number).digest())
        samples.drop(document(number), "too_short", hashlib.sha256(b"%d" % number).digest())
    return samples.page("name", {"too_short": len(numbers)}, len(numbers))


def test_no_order_changes_the_choice() -> None:
    numbers = list(range(200))
    shuffled = random.Random(1).sample(numbers, len(numbers))
    assert page(numbers) == page(shuffled)
    assert page(numbers).count("<article>") == KEPT + PER_REASON


def test_texts_names_and_reasons_are_escaped() -> None:
    samples = Samples()
    samples.keep(document(1, "<script>alert(1)</script>"), bytes(32))
    samples.drop(document(2, "<b>"), "<i>why</i>", bytes(32))
    shown = samples.page("<name>", {"<i>why</i>": 1}, 1)
    assert "<script>" not in shown
    assert "<i>why" not in shown
    assert "<name>" not in shown
    assert "&lt;script&gt;alert(1)" in shown


def test_a_long_text_is_cut_and_says_so() -> None:
    samples = Samples()
    samples.keep(document(1, "x" * (SHOWN + 1234)), bytes(32))
    assert "(1,234 characters more)" in samples.page("name", {}, 1)
