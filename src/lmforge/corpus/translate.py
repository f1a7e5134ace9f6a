"""Translation as text: the form of a parallel document, and paraphrases by way of another language and back.

    <en> A dog runs.          one document of a `parallel` source; the loss counts on the second sentence alone (meta.loss_spans)
    <de> Ein Hund rennt.

A prefix language model trained on such documents translates by continuing `prompt_of`. `back_translate` (Sennrich et al. 2016, section 3;
as paraphrasing: Mallinson et al. 2017) takes the translator as a callable, since this folder knows no models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lmforge.corpus.clean import clean

Translate = Callable[[Sequence[str], str, str], list[str]]  # (texts, from language, to language) → translations, in order


def one_line(text: str) -> str:
    """A sentence as the form holds it: cleaned, on one line."""
    return " ".join(clean(text).split())


def prompt_of(text: str, source: str, target: str) -> str:
    """What a translation model continues with the translation of `text` and a line end."""
    return f"<{source}> {one_line(text)}\n<{target}>"


def parallel_document(source_text: str, target_text: str, source: str, target: str) -> tuple[str, dict[str, Any]]:
    """(text, meta) of one sentence pair in one direction.

    meta: `languages` [source, target]; `loss_spans`, the characters that count (the translation, the space before it and the line end
    after it, so that a model learns to begin and to stop); `split_key`, equal for both directions, which keeps them in one split.
    """
    prompt = prompt_of(source_text, source, target)
    text = f"{prompt} {one_line(target_text)}\n"
    pair = sorted(((source, one_line(source_text)), (target, one_line(target_text))))
    key = hashlib.sha256(repr(pair).encode()).hexdigest()[:32]
    return text, {"languages": [source, target], "loss_spans": [[len(prompt), len(text)]], "split_key": key}
