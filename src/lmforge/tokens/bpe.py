r"""Text ↔ tokens: byte-level BPE (Sennrich et al. 2016, algorithm 1, over bytes as in GPT-2), stored as `tokenizers`
stores it.

    text ──WORDS──▶ pieces ──each piece's UTF-8 bytes, merged in the order learned──▶ tokens

Every byte is a token of its own, so any bytes can be written and read back. Special tokens stand for no bytes and no
text ever encodes to
one: token 0, the end of a text, and, in a vocabulary learned for conversations, tokens 1 to 4 (CHAT_TOKENS).

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

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.allocator import freed_memory_returned, give_back_freed_memory
from lmforge.compiled import load_without_linear_algebra
from lmforge.errors import InputError
from lmforge.machine import available_bytes, cores
from lmforge.progress import log
from lmforge.record import write_atomic
from lmforge.tokens.count import Pieces, count_pieces, weighted_pieces
from lmforge.tokens.encode import Encoder, Ranks, ranks_of
from lmforge.tokens.merge import Learned, learn
from lmforge.tokens.pretokenize import SUPERWORDS, WORDS, as_bytes, classes_for, joined
from lmforge.tokens.tokenizer_json import Library, is_imported, token_names

END_OF_TEXT = "<|endoftext|>"
# who speaks, and the end of a turn (lmforge.tokens.chat)
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SUPERWORD_SHARE = 0.5  # of a vocabulary with superwords that is learned within words
# bytes of memory that learning takes for a byte of distinct pieces, and of distinct lines
_PIECE_RAM, _LINE_RAM = 32, 40
_AT_ONCE = 1 << 14  # entries of tokenizer.json written at a time


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte inside tokenizer.json (GPT-2's table: printable Latin-1 as
    itself)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_CHARACTER = _byte_characters()
_ALPHABET = sorted(range(256), key=_CHARACTER.__getitem__)  # the bytes in the order of their tokens


class Tokenizer:
    """A vocabulary and its merges, learned here or imported (lmforge.tokens.tokenizer_json). `vocab_size` counts every
    token, `end_of_text` is 0, `sha256` is that of its tokenizer.json.

    `special` maps the names of the special tokens to their ids: the end of a text, and CHAT_TOKENS where the vocabulary
    has them. Threads may share one; each gets a memo of its own.
    """

    end_of_text = 0
    special: Mapping[str, int]
    _library: Library | None  # encodes, where the vocabulary is not ours

    def __init__(self, content: str, where: str = "tokenizer.json") -> None:
        """From the text of a tokenizer.json.

        Raises:
            InputError: not JSON, or not a byte-level BPE with the end of text as token 0; `where` names it.
        """
        try:
            file = orjson.loads(content)
            if is_imported(file, (WORDS, SUPERWORDS)):
                self._take(content, file)
                return
            splitter = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            vocabulary, merges = file["model"]["vocab"], file["model"]["merges"]
            if splitter not in (WORDS, SUPERWORDS):
                raise ValueError("it cuts texts by another pattern")
            names = [""] * len(vocabulary)
            for name, token in vocabulary.items():
                names[token] = name
            if (
                names[0] != END_OF_TEXT
                or not all(names)
                or any(character not in vocabulary for character in _CHARACTER)
            ):
                raise InputError(
                    f"{where}: token 0 is not {END_OF_TEXT} or a byte has no token; run the tokens stage again"
                )
            numbers = (vocabulary[part] for left, right in merges for part in (left, right, left + right))
            pairs = np.fromiter(numbers, dtype=np.int32, count=3 * len(merges)).reshape(-1, 3)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{where}: not a tokenizer that lmforge wrote ({error}); run the tokens stage again"
            ) from error
        self._make(content, names, pairs, splitter == SUPERWORDS)

    def _take(self, content: str, file: Mapping[str, Any]) -> None:
        """A vocabulary of others (lmforge.tokens.tokenizer_json), whose token 0 is the end of text."""
        names = token_names(file, _CHARACTER)
        self._content, self._library = content, Library(file)
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self.vocab_size = len(names)
        special = {token["content"]: token["id"] for token in file["added_tokens"] if token["special"] and token["id"]}
        whole = all(name in special for name in CHAT_TOKENS)  # some of them alone make no chat
        self.special = {END_OF_TEXT: 0} | {
            name: token for name, token in special.items() if whole or name not in CHAT_TOKENS
        }
        self._bytes, self._ends = _bytes_of(names)
        self._of_byte = np.array([file["model"]["vocab"][character] for character in _CHARACTER], dtype=np.int32)

    def _make(self, content: str, names: list[str], merges: NDArray[np.int32], superwords: bool) -> Tokenizer:
        self._content, self._library = content, None
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self.vocab_size = len(names)
        first = names[: 1 + len(CHAT_TOKENS)]
        self.special = {name: first.index(name) for name in (END_OF_TEXT, *CHAT_TOKENS) if name in first}
        self._bytes, self._ends = _bytes_of(
            ["" if token in self.special.values() else name for token, name in enumerate(names)]
        )
        of_name = {name: token for token, name in enumerate(names[: 256 + len(self.special)])}
        self._of_byte = np.array([of_name[character] for character in _CHARACTER], dtype=np.int32)
        self._superwords = superwords
        self._ranks: Ranks = ranks_of(merges, self._of_byte)
        self._of_thread = threading.local()
        return self

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            InputError: missing, unreadable, or not one that lmforge wrote.
        """
        try:
            return cls(path.read_bytes().decode("utf-8"), str(path))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; run the tokens stage first") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); run the tokens stage again") from error

    def save(self, path: Path) -> None:
        """Write the tokenizer.json, byte for byte as it was read or learned.

        Raises:
            InputError: no permission to write there.
            LmforgeError: the disk is full.
        """
        write_atomic(path, self._content)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; never a special one. A lone surrogate, which UTF-8 cannot write, becomes U+FFFD."""
        return list(self.encode_arrays([text])[0].tolist())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        tokens, ends = self.encode_arrays(texts)
        stops = ends.tolist()
        return [tokens[start:stop].tolist() for start, stop in zip([0, *stops], stops, strict=False)]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(the tokens of all texts one after another, int32; where those of each text end). The fast way: nothing
        becomes a list."""
        if self._library:
            return self._library.encode(texts)
        encoder = getattr(self._of_thread, "encoder", None)
        if encoder is None:
            encoder = self._of_thread.encoder = Encoder(self._ranks, self._superwords)
        data, ends = joined(list(texts))
        return encoder.encode(data, ends, classes_for(data))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The tokens of any bytes: `encode` of what is UTF-8, one token a byte for the rest. `decode_bytes` gives
        `data` back."""
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        tokens: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                tokens += self._of_byte[as_bytes(part.encode("utf-8", "surrogateescape"))].tolist()
            elif part:
                tokens += self.encode(part)
        return tokens

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that tokens stand for, joined (none for the end of text).

        Raises:
            InputError: a token outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that tokens stand for; bytes that are not UTF-8 show as U+FFFD.

        Raises:
            InputError: a token outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for (none for the end of text).

        Raises:
            InputError: outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise InputError(
                f"token {token}: outside the vocabulary of {self.vocab_size}; is this another model's tokenizer?"
            )
        start = int(self._ends[token - 1]) if token else 0
        return self._bytes[start : int(self._ends[token])]


def _bytes_of(names: list[str]) -> tuple[bytes, NDArray[np.int64]]:
    """(the bytes that names of tokens.json stand for, one after another; where each ends)."""
    table = np.zeros(0x200, dtype=np.uint8)
    table[[ord(character) for character in _CHARACTER]] = np.arange(256)
    data = table[np.frombuffer("".join(names).encode("utf-16-le"), dtype="<u2")].tobytes()
    return data, np.cumsum([len(name) for name in names], dtype=np.int64)


def _names_of(data: bytes, ends: NDArray[np.int64]) -> list[str]:
    """The names in tokenizer.json of tokens with these bytes."""
    text = "".join(map(_CHARACTER.__getitem__, data))
    stops = ends.tolist()
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


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
    model: dict[str, Any] = {
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
            "model": model,
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
) -> Tokenizer:
    """Learn a vocabulary: the commonest pair of neighbours becomes a token, again and again. The same texts give the
    same bytes.

    A pair seen once is not worth a token, nor is one of 64 bytes or more. With `chat` it begins with CHAT_TOKENS too.
    With `superwords` the second half of the vocabulary may cross spaces; `documents` must then be a collection, since
    it is read twice. `max_ram` is in bytes (default: half of what is free); `progress` is told of merges made.

    Raises:
        InputError: `vocab_size` is more than these texts support, or less than the tokens that are always there (257;
            261 with `chat`).
        LmforgeError: the disk of temporary files is full.
    """
    special = _special(vocab_size, chat)
    max_ram, threads = max_ram or machine_share(), threads or cores()
    first = vocab_size if not superwords else max(256 + len(special), int(vocab_size * SUPERWORD_SHARE))
    load_without_linear_algebra()
    with freed_memory_returned():
        learned = _learn_words(_counted(documents, False, max_ram, threads), first, special, progress)
        if superwords:
            learned = _learn_lines(_counted(documents, True, max_ram, threads), learned, vocab_size, progress)
        give_back_freed_memory()
        return _finished(learned, vocab_size, special, superwords)


def _counted(documents: Iterable[str], superwords: bool, max_ram: int, threads: int) -> Pieces:
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
    return replace(pieces, prints=pieces.prints[:0])  # of no more use


def train_on_pieces(pairs: Iterable[tuple[bytes, int]], vocab_size: int, chat: bool = False) -> Tokenizer:
    """`train_tokenizer` from pieces that were counted elsewhere, counts up to 2^62.

    Raises:
        InputError: as `train_tokenizer`; a count that is not between 1 and 2^62.
    """
    special = _special(vocab_size, chat)
    learned = _learn_words(weighted_pieces(pairs), vocab_size, special, lambda merges: None)
    return _finished(learned, vocab_size, special, False)


def _special(vocab_size: int, chat: bool) -> tuple[str, ...]:
    special = (END_OF_TEXT, *CHAT_TOKENS) if chat else (END_OF_TEXT,)
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
    tokens = [*(name.encode() for name in special), *(bytes([byte]) for byte in _ALPHABET)]
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    known = Learned(as_bytes(b"".join(tokens)), ends, np.empty((0, 3), dtype=np.int32), len(special))
    symbols, ends, counts = _token_of_byte(len(special))[pieces.data], pieces.ends, pieces.counts
    del pieces  # nobody else holds them
    return learn(symbols, ends, counts, known, vocab_size, progress)


def _token_of_byte(offset: int) -> NDArray[np.int32]:
    tokens = np.empty(256, dtype=np.int32)
    tokens[_ALPHABET] = np.arange(256) + offset
    return tokens


def _learn_lines(lines: Pieces, learned: Learned, vocab_size: int, progress: Callable[[int], None]) -> Learned:
    """Merges that cross spaces, from what the merges so far make of the lines."""
    encoder = Encoder(ranks_of(learned.merges, _token_of_byte(learned.special)), superwords=True)
    symbols, ends = encoder.encode(lines.data, lines.ends, classes_for(lines.data))
    symbols, counts = symbols.copy(), lines.counts
    del lines, encoder  # nobody else holds them
    return learn(symbols, ends, counts, learned, vocab_size, progress)


def _finished(learned: Learned, vocab_size: int, special: Sequence[str], superwords: bool) -> Tokenizer:
    found = len(learned.ends)
    if found < vocab_size:
        raise InputError(
            f"tokens.vocab_size: {vocab_size} is more than these texts support ({found - 256 - len(special)} merges "
            "found); "
            f"set tokens.vocab_size to at most {found} or add texts"
            + (
                " (with another size the half within words is another, so a little more or less may be found)"
                if superwords
                else ""
            )
        )
    names = [*special, *_names_of(learned.data.tobytes(), learned.ends)[len(special) :]]
    content = _document(names, learned.merges, special, superwords)
    return Tokenizer.__new__(Tokenizer)._make(content, names, learned.merges, superwords)
