"""Reading a source in tests: its documents, its refusal, its parts one by one."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest

from lmforge.corpus.sources.kinds import Document, iter_documents, parts, read_part
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind


def read(kind: SourceKind, path: Path, **more: str) -> list[Document]:
    return list(iter_documents(Source(kind=kind, path=path, **more)))  # type: ignore[arg-type]


def refusal(kind: SourceKind, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(kind, path)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # a mend follows the cause
    return message


def lines(count: int) -> bytes:
    """Records that do not compress to nothing, so that a cut file still holds some."""
    words = random.Random(1)
    return b"".join(json.dumps({"text": f"{n} {words.random()}"}).encode() + b"\n" for n in range(count))


def read_in_parts(source: Source) -> list[Document]:
    """Each part on its own, as another process would: through pickle, in any order."""
    pieces = [pickle.loads(pickle.dumps(part)) for part in parts(source)]
    by_part = {number: list(read_part(source, piece)) for number, piece in reversed(list(enumerate(pieces)))}
    return [document for number in sorted(by_part) for document in by_part[number]]
