"""WARC archives → records, each on its own: what cannot be read of one record ends no archive.

    blocks and breaks ─▶ records (head, block) │ Damage

ISO 28500 (WARC 1.0, 1.1). A record is found by its length, and what follows it must be another record or the end: if
not, its head lies, and reading goes on with the next line that a record begins with. A gzip member that begins with a
record ends the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lmforge.corpus.sources.response import HEAD_END, LONGEST_HEAD, head_fields
from lmforge.corpus.sources.unfold import Break

MOST_HELD = 16 << 20  # bytes of a record's block that are held; of a longer one the beginning is given out
_START = re.compile(rb"(?:\A|\n)(?=WARC/[01]\.\d+\r?\n)")
_INSIDE = re.compile(rb"\r?\n\r?\n(?=WARC/[01]\.\d+\r?\n(?:WARC-|Content-))", re.IGNORECASE)
_SPACE = b"\r\n"


class Damage(NamedTuple):
    """A record, or a part of the archive, that cannot be read."""

    cause: str


class WarcRecord(NamedTuple):
    """A record: its head's fields by lower-case name, its block (cut at `MOST_HELD`) and the block's whole length."""

    fields: dict[str, str]
    block: bytes
    length: int

    @property
    def kind(self) -> str:
        """response, resource, conversion, request, …"""
        return self.fields.get("warc-type", "").lower()


# Records


def records_of(stream: Iterable[bytes | Break]) -> Iterator[WarcRecord | Damage]:
    """Every record of an archive, and a `Damage` for each that cannot be read, in order."""
    return iter(_Archive(stream).records())


class _Archive:
    """The bytes of an archive from `place` on, as far as they were asked for."""

    def __init__(self, stream: Iterable[bytes | Break]) -> None:
        self.stream = iter(stream)
        self.held, self.place = bytearray(), 0
        self.starts: list[int] = []  # where in `held` members begin
        self.gap: str | None = None  # why the bytes after `held` could not be read
        self.ended = False

    def more(self) -> bool:
        """Hold another block; False at the end of the file and at a gap."""
        if self.gap is not None or self.ended:
            return False
        for block in self.stream:
            if isinstance(block, bytes):
                self.held += block
                return True
            if block.cause is not None:
                self.gap = block.cause
                return False
            self.starts.append(len(self.held))
        self.ended = True
        return False

    def has(self, size: int) -> bool:
        """Whether `size` bytes can be held from `place` on."""
        while len(self.held) - self.place < size:
            if not self.more():
                return False
        return True

    def forget(self) -> None:
        """What lies before `place` goes."""
        if self.place > MOST_HELD // 4 or self.place == len(self.held):
            del self.held[: self.place]
            self.starts = [start - self.place for start in self.starts if start >= self.place]
            self.place = 0

    def records(self) -> Iterator[WarcRecord | Damage]:
        lost = False  # whether the place where the next record begins is to be looked for
        while True:
            self.forget()
            if lost and not self.find():
                if self.gap is None:
                    return
            else:
                self.skip_blanks()
            if not self.has(1):
                if self.gap is None:
                    return
                yield self.after_gap()
                lost = True
                continue
            record = self.record()
            lost = isinstance(record, Damage)
            if self.gap is not None and lost and self.place == len(self.held):
                record = self.after_gap()
            yield record

    def after_gap(self) -> Damage:
        """The gap is reported; reading goes on behind it."""
        assert self.gap is not None
        damage = Damage(self.gap)
        self.gap, self.held, self.place, self.starts = None, bytearray(), 0, []
        return damage

    def find(self) -> bool:
        """Go to the next place where a record begins; False where there is none before the end or a gap."""
        while True:
            if match := _START.search(self.held, self.place):
                self.place = match.end()
                return True
            self.place = max(self.place, len(self.held) - 32)
            self.forget()
            if not self.more():
                self.place = len(self.held)
                return False

    def skip_blanks(self) -> None:
        while self.has(1) and self.held[self.place] in _SPACE:
            self.place += 1

    def record(self) -> WarcRecord | Damage:
        """The record at `place`, which is left behind it; or within it, where it cannot be read."""
        begin = self.place
        head_end = self.head_end()
        self.place = begin + 1
        if head_end is None:
            if not self.has(LONGEST_HEAD):
                self.place = len(self.held) if not _INSIDE.search(self.held, begin) else begin + 1
            return Damage("a record's head without an end, or no record at all")
        fields = head_fields(bytes(self.held[begin:head_end]).split(b"\n")[1:])
        text = fields.get("content-length", "")
        if self.held[begin : begin + 5] != b"WARC/" or not text.isdecimal() or len(text) > 15:
            return Damage("a record's head that is none")
        self.place, length = head_end, int(text)
        if length > MOST_HELD:
            return self.long_record(fields, length)
        if not self.has(length) or self.overrun(head_end, head_end + length):
            self.place = self.next_inside(head_end, min(head_end + length, len(self.held)))
            return Damage("a record that ends before its length")
        end = self.place = head_end + length
        self.has(16)
        follows = bytes(self.held[end : end + 16]).lstrip(_SPACE)
        swallowed = self.swallowed(head_end, end)
        if swallowed is not None or (follows and not b"WARC/".startswith(follows[:5])):
            self.place = head_end if swallowed is None else swallowed
            return Damage("a record that is not as long as it says")
        return WarcRecord(fields, bytes(self.held[head_end:end]), length)

    def head_end(self) -> int | None:
        begin = self.place
        while True:
            match = HEAD_END.search(self.held, begin, begin + LONGEST_HEAD)
            if match:
                return match.end()
            if len(self.held) - begin >= LONGEST_HEAD or not self.more():
                return None

    def overrun(self, begin: int, end: int) -> bool:
        """Whether a member that begins with a record lies within the block."""
        return any(begin < start < end and self.held[start : start + 5] == b"WARC/" for start in self.starts)

    def next_inside(self, begin: int, end: int) -> int:
        """Where within a block that is too short the next record may begin."""
        inside = [start for start in self.starts if begin < start < end and self.held[start : start + 5] == b"WARC/"]
        match = _INSIDE.search(self.held, begin)
        places = [*inside[:1], *([match.end()] if match else [])]
        return min(places) - 1 if places else len(self.held)

    def swallowed(self, begin: int, end: int) -> int | None:
        """Where a record begins within the block that ends just where the block does: then the block is too long."""
        if self.held.find(b"\nWARC/", begin, end) < 0:
            return None
        matches = list(_INSIDE.finditer(self.held, begin, end))
        if not matches:
            return None
        head = HEAD_END.search(self.held, matches[-1].end(), end)
        if not head:
            return None
        fields = head_fields(bytes(self.held[matches[-1].end() : head.start()]).split(b"\n")[1:])
        text = fields.get("content-length", "")
        fits = text.isdecimal() and len(text) < 16 and 0 <= end - head.end() - int(text) <= 4
        return matches[0].end() - 1 if fits else None

    def long_record(self, fields: dict[str, str], length: int) -> WarcRecord | Damage:
        """A record of which only the beginning is held."""
        self.has(MOST_HELD)
        match = _INSIDE.search(self.held, self.place, self.place + length)
        begin = self.place
        if match is None and self.has(MOST_HELD):
            block, left = bytes(self.held[begin : begin + MOST_HELD]), length
            while match is None and left > 0:
                size = min(left, len(self.held) - self.place)
                match = _INSIDE.search(self.held, self.place, self.place + size)
                keep = min(64, size) if size < left else 0  # a mark may lie across two blocks
                self.place, left = self.place + size - keep, left - size + keep
                self.forget()
                if match is None and left > 0 and not self.more():
                    self.place = len(self.held)
                    return Damage("a record that ends before its length")
            if match is None:
                return WarcRecord(fields, block, length)
        self.place = match.end() - 1 if match else len(self.held)
        return Damage("a record that is not as long as it says")
