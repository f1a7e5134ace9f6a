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
# C0 without tab, line feed and form feed (a page break in source code); DEL; C1; byte-order marks and interlinear
# marks.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]")
_ASCII_CONTROLS = bytes(code for code in range(128) if _CONTROL.match(chr(code)))
_SURROGATE = re.compile("[\ud800-\udfff]")
# beside ASCII these marks alone are never mojibake, and ftfy's detector is slow
_TELLING = re.compile("[^\x00-\x7f‘’“”–—…•]")
_BLANK_RUN = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """Repair and normalise `text`; `clean(clean(t)) == clean(t)`.

    In order: terminal escapes and control characters go, line endings become `\\n`, mojibake is decoded (ftfy) line by
    line, Unicode is composed (NFC), trailing whitespace goes, runs of more than two blank lines become two, blank lines
    at both ends go (one final line end stays where there was one).
    """
    if text.isascii():
        return layout(_TERMINAL_ESCAPE.sub("", text).encode().translate(None, _ASCII_CONTROLS).decode())
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
    text = _CONTROL.sub("", _TERMINAL_ESCAPE.sub("", text))
    return unicodedata.normalize("NFC", text)


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
