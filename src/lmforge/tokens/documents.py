"""Documents → tokens, and which of them count in the loss; in this process or in several, in order.

    lines of a corpus file ──batches──▶ worker processes ──in the order sent──▶ Encoded documents

A document is a text, whose every token counts unless `meta.loss_spans` lists the parts that do ([[first character, one
after the last], …]): then the tokens with a byte inside one, and the end of the text where its last character does. Or
it is a conversation in `meta.messages`, rendered by `lmforge.tokens.chat`.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError, LmforgeError
from lmforge.tokens.chat import end_counts, render_conversation
from lmforge.tokens.count import batches
from lmforge.tokens.images import Pixels, has_images, marked_tokens, pictures_of
from lmforge.tokens.shards import token_dtype
from lmforge.tokens.tokenizer import Tokenizer

BATCH_BYTES = 1_000_000  # of lines encoded at a time: memory is about twenty times this per process


class Encoded(NamedTuple):
    """A document's tokens, what stands before it first; which count (None: all); its text's UTF-8 bytes; what it is;
    whether its end counts; and how much of the text its tokens do not say (`Tokenizer.missing`)."""

    tokens: NDArray[Any]
    counted: NDArray[np.bool_] | None
    bytes: int
    source: str
    genre: str
    end_counted: bool = True
    missing: int = 0
    images: tuple[tuple[int, Pixels], ...] = ()  # each with the place of its first mark


def encode_lines(lines: Iterable[bytes], tokenizer_file: Path, workers: int) -> Iterator[list[Encoded]]:
    """The documents of a corpus file's lines (JSON), batch by batch in their order; the same for any number of
    processes.

    Raises:
        InputError: loss spans or messages that are not of their form (names the document).
        LmforgeError: a process died.
    """
    parts = batches(lines, BATCH_BYTES)
    if workers == 1:
        tokenizer = Tokenizer.load(tokenizer_file)
        for batch in parts:
            yield encode_batch(batch, tokenizer)
        return
    # "spawn": a fork would copy this process's threads in the middle of whatever they do.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[list[Encoded]]] = deque()
    with ProcessPoolExecutor(workers, context, _begin, (tokenizer_file,)) as pool:
        try:
            for batch in parts:
                waiting.append(pool.submit(_encode, batch))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise LmforgeError(
                f"tokens: one of the {workers} processes that encode died (out of memory?); set tokens.workers lower"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_tokenizer: Tokenizer | None = None  # of a worker process


def _begin(tokenizer_file: Path) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    _tokenizer = Tokenizer.load(tokenizer_file)


def _encode(batch: list[bytes]) -> list[Encoded]:
    assert _tokenizer is not None
    return encode_batch(batch, _tokenizer)


def encode_batch(lines: Sequence[bytes], tokenizer: Tokenizer) -> list[Encoded]:
    """The documents of some lines.

    Raises:
        InputError: as `encode_lines`.
    """
    documents = [json.loads(line) for line in lines]
    texts = [document["text"] for document in documents if not (is_conversation(document) or has_images(document))]
    flat, ends = tokenizer.encode_arrays(texts)
    plain = iter(np.split(flat, ends[:-1]) if len(ends) else [])
    return [
        _conversation(document, tokenizer)
        if is_conversation(document)
        else _with_images(document, tokenizer)
        if has_images(document)
        else _text(document, next(plain), tokenizer)
        for document in documents
    ]


def _with_images(document: dict[str, Any], tokenizer: Tokenizer) -> Encoded:
    tokens, counted, places = marked_tokens(document, tokenizer)
    ids = np.array(tokens, dtype=token_dtype(tokenizer.vocab_size))
    images = tuple(zip(places, pictures_of(document), strict=True))
    return _encoded(document, ids, counted, False)._replace(images=images)


def _conversation(document: dict[str, Any], tokenizer: Tokenizer) -> Encoded:
    try:
        rendered = render_conversation(document["meta"]["messages"], tokenizer)
    except InputError as error:
        raise InputError(f"corpus document {document.get('id')!r}: meta.{error}") from error
    tokens = np.array(rendered.tokens, dtype=token_dtype(tokenizer.vocab_size))
    return _encoded(document, tokens, np.array(rendered.counted), end_counts(rendered, tokenizer))


def _text(document: dict[str, Any], body: NDArray[Any], tokenizer: Tokenizer) -> Encoded:
    tokens = np.concatenate(([tokenizer.begin], body)).astype(token_dtype(tokenizer.vocab_size))
    counted = _inside(document, len(tokens), tokenizer)
    encoded = _encoded(document, tokens, counted, counted is None or bool(counted[-1]))
    return encoded._replace(missing=tokenizer.missing(body, encoded.bytes))


def _encoded(
    document: dict[str, Any], tokens: NDArray[Any], counted: NDArray[np.bool_] | None, end_counted: bool
) -> Encoded:
    size = len(document["text"].encode("utf-8", "replace"))
    source, genre = str(document.get("source", "unknown")), str(document.get("genre", "unknown"))
    return Encoded(tokens, counted, size, source, genre, end_counted)


def is_conversation(document: dict[str, Any]) -> bool:
    """Whether a document is rendered as a conversation."""
    return bool((document.get("meta") or {}).get("messages"))


def _inside(document: dict[str, Any], length: int, tokenizer: Tokenizer) -> NDArray[np.bool_] | None:
    """Which of a document's `length` tokens have a part of a character inside its loss spans; None where it has none.
    The first, which stands before the text, stays True."""
    spans = (document.get("meta") or {}).get("loss_spans")
    if spans is None:
        return None
    text = document["text"]
    try:
        pairs = [(int(first), int(last)) for first, last in spans]
    except (TypeError, ValueError):
        pairs = [(-1, 0)]
    if any(not 0 <= first <= last <= len(text) for first, last in pairs):
        raise InputError(
            f"corpus document {document.get('id')!r}: meta.loss_spans {str(spans)[:60]} are not [first, last] pairs of "
            f"characters within its text of {len(text)}; correct them and run the corpus stage again"
        )
    _, places = tokenizer.encode_spans(text)
    counted = np.zeros(length, dtype=bool)
    for first, last in pairs:
        if first < last:
            counted[1:] |= (places[:, 0] < last) & (places[:, 1] > first)
    counted[0] = True
    return counted
