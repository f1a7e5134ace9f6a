"""Files of lines in UTF-16 and UTF-32, as Windows' programs write them → the same lines in UTF-8.

JSON has to be UTF-8 (RFC 8259, section 8.1), but what PowerShell's `>` or Excel wrote is JSON all the same. Such a file
is told by its mark, or by the NULs beside its first character as RFC 4627, section 3, says: nothing else that begins
with a brace has any there.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lmforge.corpus.sources.unfold import Break

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_NEEDED = 4  # bytes that tell
_BEGINS = b'{[" \t\r\n'  # a record, or what stands before it


def wide_encoding(head: bytes) -> str | None:
    """The codec of a file that begins with these bytes (four, where it has as many); None where it is not UTF-16 or
    UTF-32."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for size, form in ((4, "utf-32"), (2, "utf-16")):
        first = head[:size]
        if len(first) == size and first.count(0) == size - 1:
            little = first[-1] == 0
            if first[0 if little else -1] in _BEGINS:
                return f"{form}-{'le' if little else 'be'}"
    return None


def is_wide(path: Path) -> bool:
    """Whether a plain file is in UTF-16 or UTF-32; one that cannot be opened is not."""
    try:
        with path.open("rb") as file:
            return wide_encoding(file.read(_NEEDED)) is not None
    except OSError:
        return False


def as_utf8(pieces: Iterable[bytes | Break], noted: Callable[[str], None]) -> Iterator[bytes | Break]:
    """The blocks of a file, in UTF-8 if they are in UTF-16 or UTF-32, of which `noted` is told; else as they are.

    What does not decode becomes U+FFFD. After damage decoding begins anew.
    """
    rest = iter(pieces)
    held, head = list[bytes | Break](), b""
    for piece in rest:
        held.append(piece)
        head += piece[:_NEEDED] if isinstance(piece, bytes) else b""
        if len(head) >= _NEEDED or (isinstance(piece, Break) and piece.cause):
            break
    name = wide_encoding(head)
    if name is None:
        yield from held
        yield from rest
        return
    noted(name.rpartition("-")[0])
    decoder = codecs.getincrementaldecoder(name)("replace")
    for piece in itertools.chain(held, rest):
        if isinstance(piece, bytes):
            yield decoder.decode(piece).encode()
        else:
            if (piece.cause or piece.last) and (torn := decoder.decode(b"", final=True)):
                yield torn.encode()
            yield piece
