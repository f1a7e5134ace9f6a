"""Bytes of a text → the encoding they are in: a mark, a declaration, UTF-8, or the likeliest of the old ones.

    bytes ─▶ byte-order mark │ declared │ UTF-8 │ ISO-2022, HZ by their escapes │ UTF-16, UTF-32 by their NULs
          └▶ else: what two kept detectors and the neighbours of their answers propose ─▶ the least strange text that
             the whole file decodes to ─▶ refused when even that is strange

The detectors see a sample of the lines that are not UTF-8, the whole file is decoded to verify; so a file in two
encodings is read line by line.
"""

from __future__ import annotations

import codecs
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import charset_normalizer
import regex

from lmforge.corpus.sources.strangeness import (
    BEYOND_ASCII,
    FEW,
    MOST_STRANGE,
    ODD,
    SCRIPTS,
    TWO_BYTES,
    is_korean,
    strangeness,
)

Blocks = Callable[[], Iterable[bytes]]

SAMPLE = 1 << 16  # bytes of lines beyond ASCII that detectors see
MOST_BROKEN = 0.001  # share of the characters beyond ASCII that may not decode in an encoding that fits otherwise
LONGEST_UNMARKED = 200  # characters of running text among which a blank or a mark stands
_MOST_CONTROLS = 0.02  # share of control bytes above which bytes that are not UTF-8 are data, not an old 8-bit text
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ESCAPED = ("iso2022_jp", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_ext", "iso2022_kr")
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# a detector's answer → what it stands for here: the superset that real files are in
_SUPERSET = {
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "big5hkscs": "big5hkscs", "shift_jis": "cp932",
    "shift_jis_2004": "cp932", "shift_jisx0213": "cp932", "euc_kr": "cp949", "johab": "johab", "latin_1": "cp1252",
    "iso8859_1": "cp1252", "ascii": "cp1252", "iso8859_9": "cp1254", "iso8859_11": "cp874", "tis_620": "cp874",
    "euc_jis_2004": "euc_jp", "euc_jisx0213": "euc_jp",
}  # fmt: skip
# encodings of the same letters, which detectors take for each other: tried beside their answer
_NEIGHBOURS = (
    ("cp1252", "mac_roman", "cp850", "iso8859_15"),
    ("cp1250", "iso8859_2", "mac_latin2", "cp852", "mac_roman"),
    ("cp1251", "koi8_r", "koi8_u", "cp866", "cp1125", "iso8859_5", "mac_cyrillic"),
    ("gb18030", "cp950", "big5hkscs", "cp949", "cp932", "euc_jp"),
    ("cp1253", "iso8859_7"),
    ("cp1255", "iso8859_8"),
    ("cp1256", "iso8859_6"),
    ("cp1257", "iso8859_4", "iso8859_13"),
)
_LIKELY = regex.compile(r"[\x09-\x7e]|[\u2010-\u203f\u3000-\u303f\uff00-\uff60]")
_SPACE_OR_MARK = regex.compile(r"[\s,.\u3000-\u303f\uff00-\uff60]")


class NotText(Exception):
    """The bytes cannot be read as text; the message says why."""


class Binary(NotText):
    """They are no text at all; the message says what gave them away."""


class UnknownEncoding(NotText):
    """They may be text, but no encoding can be told with confidence; the message says which came nearest."""


class Encoding(NamedTuple):
    """How a text is to be decoded."""

    name: str  # a Python codec's
    detected: bool = False  # told from the bytes, not by a mark, a declaration or by being UTF-8
    mixed: bool = False  # line by line: UTF-8 where a line is that
    broken: int = 0  # bytes or so that do not decode and become U+FFFD

    @property
    def label(self) -> str:
        """As the statistics name it."""
        return f"utf-8 and {self.name}, by line" if self.mixed else self.name


def encoding_of(blocks: Blocks, declared: str | None = None) -> Encoding:
    """The encoding of the bytes that `blocks()` streams (several times, when they are not UTF-8); `declared` is used
    where they decode as it. Memory holds a block and a sample.

    Raises:
        Binary: a NUL byte, or more control characters than any text has.
        UnknownEncoding: no encoding fits, or none without looking strange.
    """
    head = next(iter(blocks()), b"")
    if mark := next((name for mark, name in _MARKS if head.startswith(mark)), None):
        if _broken(blocks, mark, 0) is None:
            raise Binary(f"starts with a {mark} byte-order mark but does not decode as it")
        return Encoding(mark)
    if declared is not None and _broken(blocks, declared, 0) is not None:
        return Encoding(declared)
    valid, nul, escapes = _scanned(blocks)
    if nul is None and valid:
        wide = _wide(blocks) if _has_controls(blocks) else None  # one script without a blank, in UTF-16
        return wide or (_escaped(blocks) if escapes else None) or Encoding("utf-8")
    if nul is not None:
        if wide := _wide(blocks):
            return wide
        raise Binary(f"a NUL byte at byte {nul}")
    return _detected(blocks)


def declared_in_python(head: bytes) -> str | None:
    """The encoding that a Python source declares in its first two lines (PEP 263)."""
    if b"coding" not in b"".join(head.split(b"\n", 2)[:2]):
        return None
    try:
        return tokenize.detect_encoding(io.BytesIO(head).readline)[0]
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def decoded(blocks: Iterable[bytes], encoding: Encoding) -> Iterator[str]:
    """The text in pieces, line ends as \\n."""
    if encoding.mixed:
        yield from map("".join, _line_by_line(blocks, encoding.name))
        return
    errors = ("stray" if encoding.name == "utf-8" else "replace") if encoding.broken else "strict"
    inner = codecs.getincrementaldecoder(encoding.name)(errors)
    decoder = io.IncrementalNewlineDecoder(inner, translate=True)
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _scanned(blocks: Blocks) -> tuple[bool, int | None, bool]:
    """(all of it is UTF-8, where the first NUL stands, whether it holds the escapes of 7-bit encodings)."""
    decoder, valid, offset, nul, escapes = codecs.getincrementaldecoder("utf-8")(), True, 0, None, False
    for block in blocks():
        if nul is None and (at := block.find(b"\0")) >= 0:
            nul = offset + at
        if valid:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                valid = False
        escapes = escapes or b"\x1b$" in block or b"\x1b(" in block or b"~{" in block
        offset += len(block)
        if nul is not None and not valid:
            break
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        valid = False
    return valid, nul, escapes


def _has_controls(blocks: Blocks) -> bool:
    """Whether a fifth of the first bytes are control characters."""
    head = next(iter(blocks()), b"")[:SAMPLE]
    return 5 * (len(head) - len(head.translate(None, _CONTROLS))) > len(head)


def _broken(blocks: Blocks, name: str, most: float) -> int | None:
    """How many places do not decode with this encoding; None where more than `most` of those beyond ASCII do not."""
    try:
        decoder = codecs.getincrementaldecoder(name)("replace" if most else "strict")
    except LookupError:
        return None
    beyond = broken = 0
    try:
        for block in _with_end(blocks()):
            text = decoder.decode(block, final=not block)
            if most:
                beyond += len(text) - len(text.encode("ascii", "ignore"))
                broken += text.count("\ufffd")
    except (UnicodeError, ValueError):
        return None
    return broken if broken <= most * beyond else None


def _with_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield from (block for block in blocks if block)
    yield b""


def _escaped(blocks: Blocks) -> Encoding | None:
    """ISO-2022 and HZ, whose bytes are all ASCII: told by their escapes."""
    sample = _sampled(blocks, lambda line: b"\x1b" in line or b"~{" in line)
    for name in (*_ESCAPED, "hz"):
        if name == "hz" and not regex.search(rb"~\{(?:[\x21-\x77][\x21-\x7e])+~\}", sample):
            continue
        if name != "hz" and b"\x1b" not in sample:
            continue
        try:
            text = sample.decode(name)
        except UnicodeError:
            continue
        if "\x1b" not in text and BEYOND_ASCII.search(text) and _broken(blocks, name, 0) is not None:
            return Encoding(name, detected=True)
    return None


def _wide(blocks: Blocks) -> Encoding | None:
    """UTF-16 or UTF-32 without a mark: the one of the four that gives a text of one script without a strange
    character."""
    head = next(iter(blocks()), b"")[:SAMPLE]
    bytes_of_ascii = len(head) - len(head.translate(None, b"\t\n\r" + bytes(range(32, 127))))
    if bytes_of_ascii > 0.9 * (len(head) - head.count(0)) and head.count(0) < 0.3 * len(head):
        return None  # ASCII with NULs in it
    best: tuple[float, str] | None = None
    for name in _WIDE:
        piece = head[: len(head) - len(head) % (4 if "32" in name else 2)]
        text = piece.decode(name, "replace").rstrip("\ufffd")
        if len(text) < 2 or ODD.search(text):
            continue
        likely = len(_LIKELY.findall(text)) + max(len(script.findall(text)) for script in SCRIPTS)
        marks = len(_SPACE_OR_MARK.findall(text))
        share = (likely + marks) / len(text)  # these twice: they tell the byte order
        if marks < len(text) // LONGEST_UNMARKED:  # the bytes of GBK are syllables of Korean here, but no marks
            continue
        if likely > 0.9 * len(text) and (best is None or share > best[0]):
            best = share, name
    if best is None or _broken(blocks, best[1], 0) is None:
        return None
    return Encoding(best[1], detected=True)


def _detected(blocks: Blocks) -> Encoding:
    """The old encoding of bytes that are not UTF-8."""
    size = controls = 0
    for block in blocks():
        size += len(block)
        controls += len(block) - len(block.translate(None, _CONTROLS))
    if controls > _MOST_CONTROLS * size:
        if wide := _wide(blocks):
            return wide
        raise Binary(f"not UTF-8, and {controls} of its {size} bytes are control characters")
    sample = _sampled(blocks, lambda line: not line.isascii() and not _is_utf8(line))
    unicode = _sampled(blocks, lambda line: not line.isascii() and _is_utf8(line))
    if not sample or mostly_utf8(sample) or _ends_early(sample):
        return Encoding("utf-8", broken=1)
    mixed = len(BEYOND_ASCII.findall(unicode.decode("utf-8", "ignore"))) >= 3
    judged = sorted(
        (-1.0 if name == "cp949" and is_korean(sample) else round(strangeness(sample, name), 2), place, name)
        for place, name in enumerate(_proposed(sample))
    )
    for strange, _, name in judged:
        if strange > MOST_STRANGE:
            break
        if mixed:
            return Encoding(name, detected=True, mixed=True)
        broken = _broken(blocks, name, MOST_BROKEN if name in TWO_BYTES else 0)
        if broken is not None:
            return Encoding(name, detected=True, broken=broken)
    if wide := _wide(blocks):
        return wide
    nearest = f" ({judged[0][2]} comes nearest)" if judged else ""
    raise UnknownEncoding(f"neither UTF-8 nor surely of any other encoding{nearest}")


def _proposed(sample: bytes) -> list[str]:
    """The encodings that the detectors name, the likelier first, then their neighbours."""
    from resiliparse.parse.encoding import detect_encoding

    named = [detect_encoding(sample, html5_compatible=False, from_html_meta=False)]
    named += [match.encoding for match in list(charset_normalizer.from_bytes(sample, chunk_size=256))[:2]]
    proposed: list[str] = []
    for name in named:
        try:
            codec = codecs.lookup(name or "").name.replace("-", "_")
        except LookupError:
            continue
        codec = _SUPERSET.get(codec, codec)
        proposed += [codec] if not codec.startswith("utf") else []
    for near in _NEIGHBOURS:
        if not set(proposed).isdisjoint(near):
            proposed += [name for name in near if name not in proposed]
    few = len(sample.translate(None, bytes(range(128)))) < FEW
    return list(dict.fromkeys(["cp1252", *proposed] if few else proposed))


def _sampled(blocks: Blocks, wanted: Callable[[bytes], bool]) -> bytes:
    """Up to `SAMPLE` bytes of the lines that are wanted, a share of each block."""
    pieces, size, held = list[bytes](), 0, b""
    for block in _with_end(blocks()):
        lines, taken = (held + block).splitlines(keepends=True), 0
        # a line that goes on in the next block is looked at with it
        held = lines.pop() if block and lines and len(lines[-1]) < SAMPLE else b""
        for line in filter(wanted, lines):
            pieces.append(line[: SAMPLE // 4])
            taken += len(pieces[-1])
            if taken > SAMPLE // 4:
                break
        size += taken
        if size >= SAMPLE:
            break
    return b"".join(pieces)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def mostly_utf8(data: bytes) -> bool:
    """Whether far more of the characters beyond ASCII are UTF-8 than are not."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    return len(BEYOND_ASCII.findall(text)) - broken >= max(3, 4 * broken)


def _ends_early(data: bytes) -> bool:
    """Whether all of it is UTF-8 but for a last character that is cut."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _stray(error: UnicodeError) -> tuple[str, int]:
    """A byte among UTF-8 that is not: of Windows' encoding, as most strays are; a last character that is cut goes."""
    assert isinstance(error, UnicodeDecodeError)
    if error.reason == "unexpected end of data":
        return "", error.end
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("stray", _stray)


def _line_by_line(blocks: Iterable[bytes], name: str) -> Iterator[list[str]]:
    held = b""
    for block in _with_end(blocks):
        *lines, held = (held + block).split(b"\n") if block else (held, b"")
        ends = "\n" if block else ""
        yield [_line(line.removesuffix(b"\r"), name) + ends for line in lines]


def _line(line: bytes, name: str) -> str:
    if _is_utf8(line) or mostly_utf8(line):
        return line.decode("utf-8", "stray")
    return line.decode(name, "replace")
