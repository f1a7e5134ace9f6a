"""Normalise a text, and say by name why a text is not worth training on.

`clean` repairs what is surely damage (mojibake, control characters, stray line endings) and leaves alone what may be meant:
quotes, HTML entities, ligatures, tabs and indentation, so that source code keeps its meaning.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

import numpy as np
from ftfy import TextFixerConfig, fix_encoding
from ftfy.badness import is_bad
from ftfy.fixes import fix_surrogates

from lmforge.corpus.document import Document
from lmforge.recipe import Corpus

_REPAIR = TextFixerConfig(explain=False)
_LONGEST_REPAIRED_LINE = 100_000  # characters; ftfy's patterns are superlinear on longer ones, which are data, not prose
_PASSES = 10  # each pass that changes something shortens the text or normalises it; two are the rule
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# C0 without tab, line feed and form feed (a page break in source code); DEL; C1; byte-order marks and interlinear marks.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]")
_ASCII_CONTROLS = bytes(code for code in range(128) if _CONTROL.match(chr(code)))
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK_RUN = re.compile(r"\n{4,}")
_NOT_TEXT = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")  # replacement characters and private use
_LETTERS, _SPACES = string.ascii_letters.encode(), string.whitespace.encode()

NGRAM = 10  # words; Rae et al. 2021 (Gopher) uses 5 to 10
SHORTEST_JUDGED = 20  # lines or words below which repetition says nothing
LEAST_LETTERS = 0.2  # share of the visible characters
MOST_UNREADABLE = 0.05  # share of all characters


def prepare(document: Document, settings: Corpus, notices: Counter[str] | None = None) -> tuple[Document, str | None]:
    """Everything that concerns one document alone: the document with its text cleaned, and the reason to leave it out, or None.

    `notices` counts what was changed, by name. A pure function of the document and the settings: the same in every process.
    """
    if "loss_spans" in document["meta"]:  # which point into the text as it is: sentence pairs, tasks, conversations
        return document, None if document["text"].strip() else "too_short"
    document = {**document, "text": clean(document["text"])}
    return document, why_dropped(document["text"], settings)


def clean(text: str) -> str:
    """Repair and normalise `text`; `clean(clean(t)) == clean(t)`.

    In order: terminal escapes and control characters go, line endings become `\\n`, mojibake is decoded (ftfy) line by line,
    Unicode is composed (NFC), trailing whitespace goes, runs of more than two blank lines become two, blank lines at both ends
    go (one final line end stays where there was one).
    """
    if text.isascii():
        return _layout(_TERMINAL_ESCAPE.sub("", text).encode().translate(None, _ASCII_CONTROLS).decode())
    for _ in range(_PASSES):
        before, text = text, _layout(_repair(text))
        if text == before:
            break
    return text


def _repair(text: str) -> str:
    """The steps that only a text with characters beyond ASCII needs."""
    if _SURROGATE.search(text):
        text = fix_surrogates(text)
    text = "\n".join([line if line.isascii() else _repair_line(line) for line in text.split("\n")])
    text = _CONTROL.sub("", _TERMINAL_ESCAPE.sub("", text))
    return unicodedata.normalize("NFC", text)


def _repair_line(line: str) -> str:
    # ftfy changes only what its own detector calls bad; asking that first skips the slow part for most lines.
    if len(line) > _LONGEST_REPAIRED_LINE or not is_bad(line):
        return line
    return str(fix_encoding(line, _REPAIR))


def _layout(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(map(str.rstrip, text.split("\n")))
    ending = "\n" if text.endswith("\n") else ""
    text = _BLANK_RUN.sub("\n\n\n", text.strip("\n"))
    return text + ending if text else ""


def why_dropped(text: str, settings: Corpus) -> str | None:
    """The reason to leave a cleaned text out, or None to keep it.

    `too_short`, `too_long`: characters outside [min_chars, max_chars]. `mostly_not_text`: letters are under a fifth of the
    visible characters, or unreadable characters over a twentieth of all. `duplicate_lines`, `duplicate_ngrams`: as the functions
    below say.
    """
    if len(text) < settings.min_chars:
        return "too_short"
    if len(text) > settings.max_chars:
        return "too_long"
    if _mostly_not_text(text):
        return "mostly_not_text"
    if duplicate_line_share(text) > settings.max_duplicate_lines:
        return "duplicate_lines"
    if duplicate_ngram_share(text) > settings.max_duplicate_ngrams:
        return "duplicate_ngrams"
    return None


def _mostly_not_text(text: str) -> bool:
    if text.isascii():  # translate() is 50 times as fast as asking each character
        data = text.encode()
        return len(data.translate(None, _LETTERS + _SPACES)) > (1 - LEAST_LETTERS) * len(data.translate(None, _SPACES))
    visible = len(text) - sum(map(str.isspace, text))
    if sum(map(str.isalpha, text)) < LEAST_LETTERS * visible:
        return True
    return len(_NOT_TEXT.findall(text)) > MOST_UNREADABLE * len(text)


def duplicate_line_share(text: str) -> float:
    """Share of the non-blank lines that repeat an earlier line (indentation aside); 0 below 20 lines. Rae et al. 2021."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= SHORTEST_JUDGED else 0.0


def duplicate_ngram_share(text: str) -> float:
    """Share of the words' characters that lie in a run of 10 words seen earlier in the text; 0 below 20 words.

    Each character counts once (Rae et al. 2021). Words are compared by their 64-bit hashes: a false match within one
    text has a chance near 1e-9 even at a million words.
    """
    words = text.split()
    if len(words) < SHORTEST_JUDGED:
        return 0.0
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    runs = np.zeros(len(words) - NGRAM + 1, dtype=np.uint64)
    for offset in range(NGRAM):  # polynomial hash modulo 2^64, the multiplier odd
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + runs.size]
    ordered = np.sort(runs)
    if not (ordered[1:] == ordered[:-1]).any():  # the common case, at a tenth of the cost of the next line
        return 0.0
    order = np.argsort(runs, kind="stable")  # stable: among equal runs the first in the text comes first
    repeats = order[1:][runs[order[1:]] == runs[order[:-1]]]
    edges = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(edges, repeats, 1)
    np.add.at(edges, repeats + NGRAM, -1)
    inside = np.cumsum(edges[:-1]) > 0
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    return float(lengths[inside].sum() / lengths.sum())
