r"""Text ↔ tokens: byte-level BPE (Sennrich et al. 2016, algorithm 1, over bytes as in GPT-2), stored as `tokenizers`
stores it.

    text ──WORDS──▶ pieces ──each piece's UTF-8 bytes, merged in the order learned──▶ tokens

Every byte is a token of its own, so any bytes can be written and read back. Special tokens stand for no bytes and no
text ever encodes to one: the end of a text, and, in a vocabulary learned for conversations, CHAT_TOKENS. They are
found by their names (lmforge.tokens.special_tokens); that they come first here is of no account.

WORDS (lmforge.tokens.pretokenize) decides what a token may not cross. Bytes per token on a twentieth of the files of
Python
3.11's library, held out, vocabularies of 4,096 and 8,192 tokens:

    learned from all other files       GPT-2 3.545 3.822   cl100k (GPT-4) 3.665 4.006   cl100k with line end +
    indentation 3.718 4.063
    learned from a quarter of them     the last, less the contractions 3.675 4.036   and space + digits (WORDS) 3.701
    4.069
                                       and signs + line end + indentation 3.813 4.255

The last is shorter still, but there "):" is another token where a line ends after it: a prompt that ends in "def f(x):"
would be of a form never seen in training. Contractions need no rule of their own: "don't" is "don" and "'t" already,
while 's would cut 'self in two. With superwords the first half of the vocabulary is learned so, the rest on whole
lines, where merges cross spaces (SuperBPE, Liu et al. 2025). The file then names SUPERWORDS, and plain BPE over its
pieces is all that encoding needs: the second half begins from what the merges of the first make of the lines, so ranks
in the order learned give the state the trainer was in.

Counting, learning and encoding are our own compiled loops (tokens.count, tokens.merge, tokens.encode); the merges are
those that `tokenizers` learns and the ids those it gives, which tests compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.allocator import freed_memory_returned, give_back_freed_memory
from lmforge.compiled import load_without_linear_algebra
from lmforge.errors import InputError
from lmforge.machine import available_bytes, cores
from lmforge.progress import log
from lmforge.tokens.byte_alphabet import ALPHABET, names_of_bytes
from lmforge.tokens.count import count_pieces, weighted_pieces
from lmforge.tokens.encode import Encoder, ranks_of
from lmforge.tokens.merge import Learned, learn
from lmforge.tokens.piece_table import Pieces
from lmforge.tokens.pretokenize import SUPERWORDS, WORDS, as_bytes, classes_for
from lmforge.tokens.special_tokens import CHAT_TOKENS, END_OF_TEXT, IMAGE, guessed
from lmforge.tokens.tokenizer import Tokenizer

__all__ = ["CHAT_TOKENS", "END_OF_TEXT", "Tokenizer", "machine_share", "train_on_pieces", "train_tokenizer"]

SUPERWORD_SHARE = 0.5  # of a vocabulary with superwords that is learned within words
# bytes of memory that learning takes for a byte of distinct pieces, and of distinct lines
_PIECE_RAM, _LINE_RAM = 32, 40
_AT_ONCE = 1 << 14  # entries of tokenizer.json written at a time
_MODEL: dict[str, Any] = {  # of a tokenizer.json; vocabulary and merges are written apart
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {},
    "merges": [],
}


def _document(names: list[str], merges: NDArray[np.int32], special: Sequence[str], superwords: bool) -> str:
    """The tokenizer.json of a vocabulary, as `tokenizers` writes it."""
    added = [
        {
            "id": token,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, name in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": SUPERWORDS if superwords else WORDS},
        "behavior": "Isolated",
        "invert": False,
    }
    frame = orjson.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": _MODEL,
        }
    ).decode()
    # the two long parts are written in place: as objects they are several times the file
    start, end = frame.split('{},"merges":[]')
    quoted = [name.replace("\\", "\\\\").replace('"', '\\"') for name in names]
    parts = [start, "{"]
    for first in range(0, len(names), _AT_ONCE):
        listed = enumerate(quoted[first : first + _AT_ONCE], first)
        parts.append(
            ",".join(f'"{name}":{token}' for token, name in listed) + ("," if first + _AT_ONCE < len(names) else "")
        )
    parts.append('},"merges":[')
    for first in range(0, len(merges), _AT_ONCE):
        pairs = merges[first : first + _AT_ONCE, :2].tolist()
        parts.append(
            ",".join(f'["{quoted[left]}","{quoted[right]}"]' for left, right in pairs)
            + ("," if first + _AT_ONCE < len(merges) else "")
        )
    return "".join([*parts, "]", end])


def machine_share() -> int:
    """Bytes that learning a vocabulary may take where the recipe says nothing: half of what is free."""
    return available_bytes() // 2


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int,
    chat: bool = False,
    superwords: bool = False,
    max_ram: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda merges: None,
    images: bool = False,
    single_digits: bool = False,
) -> Tokenizer:
    """Learn a vocabulary: the commonest pair of neighbours becomes a token, again and again. The same texts give the
    same bytes.

    A pair seen once is not worth a token, nor is one of 64 bytes or more. With `chat` it begins with CHAT_TOKENS too,
    with `images` with IMAGE.
    With `superwords` the second half of the vocabulary may cross spaces; `documents` must then be a collection, since
    it is read twice. With `single_digits` no two digits are ever merged, so that a number is written digit by digit
    (Nogueira et al. 2021, section 3: it makes arithmetic easier to learn). `max_ram` is in bytes (default: half of what
    is free); `progress` is told of merges made.

    Raises:
        InputError: `vocab_size` is more than these texts support, or less than the tokens that are always there (257;
            261 with `chat`).
        LmforgeError: the disk of temporary files is full.
    """
    special = _special(vocab_size, chat, images)
    max_ram, threads = max_ram or machine_share(), threads or cores()
    first = vocab_size if not superwords else max(256 + len(special), int(vocab_size * SUPERWORD_SHARE))
    load_without_linear_algebra()
    with freed_memory_returned():
        counted = partial(_counted, documents, max_ram=max_ram, threads=threads, single_digits=single_digits)
        learned = _learn_words(counted(False), first, special, progress)
        if superwords:
            learned = _learn_lines(counted(True), learned, vocab_size, progress)
        give_back_freed_memory()
        return _finished(learned, vocab_size, special, superwords)


def _counted(
    documents: Iterable[str], superwords: bool, max_ram: int, threads: int, single_digits: bool = False
) -> Pieces:
    """The pieces to learn from; says so where not all of them fit."""
    pieces, least = count_pieces(documents, superwords, max_ram, threads, _LINE_RAM if superwords else _PIECE_RAM)
    if least:
        what = "lines" if superwords else "pieces"
        log(
            f"tokens: learning from the {len(pieces):,} commonest {what}; of those seen less than {least} times none "
            "or some fit into "
            f"{max_ram / 2**30:.2g} GiB (tokens.max_ram)"
        )
    give_back_freed_memory()
    pieces = without_numbers(pieces) if single_digits else pieces
    return replace(pieces, prints=pieces.prints[:0])  # of no more use


def without_numbers(pieces: Pieces) -> Pieces:
    """The pieces less those of two or more of the digits 0 to 9: numbers are pieces of their own, so what is learned
    from the others never joins two digits."""
    digit = (pieces.data >= ord("0")) & (pieces.data <= ord("9"))
    before = np.concatenate([[0], np.cumsum(digit, dtype=np.int64)])
    starts = np.concatenate([[0], pieces.ends[:-1]])
    return pieces.chosen(np.flatnonzero(before[pieces.ends] - before[starts] < 2))


def train_on_pieces(pairs: Iterable[tuple[bytes, int]], vocab_size: int, chat: bool = False) -> Tokenizer:
    """`train_tokenizer` from pieces that were counted elsewhere, counts up to 2^62.

    Raises:
        InputError: as `train_tokenizer`; a count that is not between 1 and 2^62.
    """
    special = _special(vocab_size, chat)
    learned = _learn_words(weighted_pieces(pairs), vocab_size, special, lambda merges: None)
    return _finished(learned, vocab_size, special, False)


def _special(vocab_size: int, chat: bool, images: bool = False) -> tuple[str, ...]:
    special = (END_OF_TEXT, *(CHAT_TOKENS if chat else ()), *((IMAGE,) if images else ()))
    least = 256 + len(special)
    if vocab_size < least:
        more = " and the chat tokens" if chat else ""
        raise InputError(
            f"tokens.vocab_size: {vocab_size} has no room for 256 bytes and the end of text{more}; set it to {least} "
            "or more"
        )
    return special


def _learn_words(pieces: Pieces, vocab_size: int, special: Sequence[str], progress: Callable[[int], None]) -> Learned:
    """Merges within pieces, from single bytes on."""
    tokens = [*(name.encode() for name in special), *(bytes([byte]) for byte in ALPHABET)]
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    known = Learned(as_bytes(b"".join(tokens)), ends, np.empty((0, 3), dtype=np.int32), len(special))
    symbols, ends, counts = _token_of_byte(len(special))[pieces.data], pieces.ends, pieces.counts
    del pieces  # nobody else holds them
    return learn(symbols, ends, counts, known, vocab_size, progress)


def _token_of_byte(offset: int) -> NDArray[np.int32]:
    tokens = np.empty(256, dtype=np.int32)
    tokens[ALPHABET] = np.arange(256) + offset
    return tokens


def _learn_lines(lines: Pieces, learned: Learned, vocab_size: int, progress: Callable[[int], None]) -> Learned:
    """Merges that cross spaces, from what the merges so far make of the lines."""
    encoder = Encoder(ranks_of(learned.merges, _token_of_byte(learned.special)), superwords=True)
    symbols, ends = encoder.encode(lines.data, lines.ends, classes_for(lines.data, marks=True))
    symbols, counts = symbols.copy(), lines.counts
    del lines, encoder  # nobody else holds them
    return learn(symbols, ends, counts, learned, vocab_size, progress)


def _finished(learned: Learned, vocab_size: int, special: Sequence[str], superwords: bool) -> Tokenizer:
    size = len(learned.ends)
    if size < vocab_size:
        raise InputError(
            f"tokens.vocab_size: {vocab_size} is more than these texts support ({size - 256 - len(special)} merges "
            "found); "
            f"set tokens.vocab_size to at most {size} or add texts"
            + (
                " (with another size the half within words is another, so a little more or less may be found)"
                if superwords
                else ""
            )
        )
    names = [*special, *names_of_bytes(learned.data.tobytes(), learned.ends)[len(special) :]]
    content = _document(names, learned.merges, special, superwords)
    numbers = {name: token for token, name in enumerate(special)}
    pattern = SUPERWORDS if superwords else WORDS
    return Tokenizer.learned(content, names, learned.merges, pattern, guessed(numbers, "tokenizer.json"))
