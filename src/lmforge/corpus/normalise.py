"""A text as it is kept: damage repaired, what may be meant left alone.

`clean` repairs what is surely damage (mojibake, control characters, stray line endings) and leaves alone what may be
meant: quotes, HTML entities, ligatures, tabs and indentation, so that source code keeps its meaning.
"""

from __future__ import annotations

import re
import unicodedata

from ftfy import TextFixerConfig, fix_encoding
from ftfy.badness import is_bad
from ftfy.fixes import fix_surrogates

_REPAIR = TextFixerConfig(explain=False)
# characters; ftfy's patterns are superlinear on longer ones, which are data, not prose
_LONGEST_REPAIRED_LINE = 100_000
_PASSES = 10  # each pass that changes something shortens the text or normalises it; two are the rule
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# C0 without tab, line feed, form feed (a page break in source code) and carriage return; DEL; C1. Many part words:
# fields, records, padding, lines of a slide.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]+")
_LINE_ENDS = re.compile("[\x0b\x1c-\x1e\x85]")  # of them those that end a line or record
_OVERSTRUCK = re.compile("[^\n\x08]\x08")  # bold and underlined on a printing terminal
_INVISIBLE = re.compile("[\u206a-\u206f\ufeff\ufff9-\ufffb]")  # byte-order marks and interlinear marks
_SURROGATE = re.compile("[\ud800-\udfff]")
# beside ASCII these marks alone are never mojibake, and ftfy's detector is slow
_TELLING = re.compile("[^\x00-\x7f‘’“”–—…•]")
_BLANK_RUN = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """Repair and normalise `text`; `clean(clean(t)) == clean(t)`.

    In order: terminal escapes go and control characters become a blank or a line end where they part words, line
    endings become `\\n`, mojibake is decoded (ftfy) line by line, Unicode is composed (NFC), trailing whitespace
    goes, runs of more than two blank lines become two, blank lines
    at both ends go (one final line end stays where there was one).
    """
    if text.isascii():
        return layout(_without_controls(text))
    for _ in range(_PASSES):
        before, text = text, layout(_repair(text))
        if text == before:
            break
    return text


def _repair(text: str) -> str:
    """The steps that only a text with characters beyond ASCII needs."""
    if _SURROGATE.search(text):
        text = fix_surrogates(text)
    if _TELLING.search(text):
        text = "\n".join([_repair_line(line) if _TELLING.search(line) else line for line in text.split("\n")])
    text = _INVISIBLE.sub("", _without_controls(text))
    return unicodedata.normalize("NFC", text)


def _without_controls(text: str) -> str:
    if not _CONTROLS.search(text):
        return text
    text = _OVERSTRUCK.sub("", _TERMINAL_ESCAPE.sub("", text))

    def blank(run: re.Match[str]) -> str:
        if _LINE_ENDS.search(run[0]):
            return "\n"
        before, behind = run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
        return " " if before.strip() and behind.strip() else ""

    return _CONTROLS.sub(blank, text)


def _repair_line(line: str) -> str:
    # ftfy changes only what its own detector calls bad; asking that first skips the slow part for most lines.
    if len(line) > _LONGEST_REPAIRED_LINE or not is_bad(line):
        return line
    return str(fix_encoding(line, _REPAIR))


def layout(text: str) -> str:
    """Line endings, blank lines and blanks at line ends as a kept text has them."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(map(str.rstrip, text.split("\n")))
    ending = "\n" if text.endswith("\n") else ""
    text = _BLANK_RUN.sub("\n\n\n", text.strip("\n"))
    return text + ending if text else ""
