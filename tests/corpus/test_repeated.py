"""Lines that many documents repeat go out of prose and stay where they mean something."""

import numpy as np
import pytest

from lmforge.corpus.overlap.duplicates import line_hashes
from lmforge.corpus.overlap.words import read_words
from lmforge.corpus.repeated import RepeatedLines, has_plain_lines
from lmforge.corpus.sources.document import Document

BANNER, COMMAND = "Subscribe to our newsletter, and follow us!", "pip install the-whole-mill-and-more"


def document(text: str, genre: str = "unknown", **meta: object) -> Document:
    return {"id": "1", "text": text, "source": "s", "genre": genre, "meta": dict(meta)}


def repeated(documents: int) -> RepeatedLines:
    hashes = np.unique(line_hashes(read_words(f"{BANNER}\n{COMMAND}")))
    return RepeatedLines([np.stack([hashes, np.full(hashes.size, 12, np.uint64)])], documents)


@pytest.mark.parametrize("genre", ["unknown", "web"])
def test_a_banner_goes_and_a_command_stays(genre: str) -> None:
    text = f"{BANNER}\nThe mill stands by the brook, and it is old.\n{COMMAND}\nIt grinds all day."
    lines, made = repeated(100), document(text, genre)
    assert lines.strip_from(made)
    assert made["text"] == text.removeprefix(f"{BANNER}\n")
    assert lines.figures()["removed"] == 1


def test_what_half_of_the_documents_begin_with_stays_where_the_genre_is_not_named() -> None:
    text = f"{BANNER}\nThe mill stands by the brook, and it is old."
    assert not repeated(20).strip_from(document(text))
    assert repeated(20).strip_from(document(text, "web"))


def test_programs_conversations_and_marked_texts_keep_their_lines() -> None:
    assert not has_plain_lines(document(BANNER, "code"))
    assert not has_plain_lines(document(BANNER, messages=[]))
    assert not has_plain_lines(document(BANNER, loss_spans=[]))
    assert has_plain_lines(document(BANNER))
