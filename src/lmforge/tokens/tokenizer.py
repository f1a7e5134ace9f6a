"""Text ↔ tokens: a vocabulary learned here, encoded by our own compiled loops, or anybody's, encoded by `tokenizers`.

    tokenizer.json ──cut by our patterns, bytes complete──▶ lmforge.tokens.encode
                   └─anything else────────────────────────▶ lmforge.tokens.library

No text ever encodes to a special token: their names inside a text are text. They are put where they belong by
`encode_document` and by `lmforge.tokens.chat`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.record import write_atomic
from lmforge.tokens.byte_alphabet import CHARACTERS, bytes_of_names
from lmforge.tokens.encode import Encoder, Ranks, ranks_of
from lmforge.tokens.library import Library, standard_json
from lmforge.tokens.pretokenize import (
    OWN_PATTERNS,
    SUPERWORDS,
    WORDS_WITHOUT_MARKS,
    as_bytes,
    classes_for,
    joined,
    without_surrogates,
)
from lmforge.tokens.special_tokens import SETTINGS, SpecialTokens, special_names, special_tokens

_Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]


class _Engine(Protocol):
    """What turns texts into tokens."""

    def encode(self, texts: Sequence[str]) -> _Encoded:
        """(the tokens of all texts one after another; where those of each text end)."""


class OwnEncoder:
    """Encodes by our compiled loops. Threads may share one; each gets a memo of its own."""

    def __init__(self, ranks: Ranks, superwords: bool, marks: bool) -> None:
        self.ranks, self.superwords, self.marks = ranks, superwords, marks
        self._of_thread = threading.local()

    def encode(self, texts: Sequence[str]) -> _Encoded:
        """(the tokens of all texts one after another; where those of each text end)."""
        encoder = getattr(self._of_thread, "encoder", None)
        if encoder is None:
            encoder = self._of_thread.encoder = Encoder(self.ranks, self.superwords)
        data, ends = joined(list(texts))
        tokens, token_ends = encoder.encode(data, ends, classes_for(data, self.marks))
        return tokens, token_ends


class Tokenizer:
    """A vocabulary and how it encodes. `vocab_size` counts every id up to the highest, `special_tokens` says which are
    special and what for, `sha256` is that of its tokenizer.json, `chat_template` the model's own (Jinja), where it has
    one.
    """

    special_tokens: SpecialTokens
    special: Mapping[str, int]  # their names and ids
    library: Library | None  # encodes, where the vocabulary is not ours
    chat_template: str | None

    def __init__(self, content: str, where: str = "tokenizer.json") -> None:
        """From the text of a tokenizer.json.

        Raises:
            InputError: not JSON, nothing that `tokenizers` runs, or no special token ends a text; `where` names it.
        """
        try:
            file = orjson.loads(content)
            if is_own(file):
                names, merges, pattern = _own_vocabulary(file, where)
                self._make(content, names, merges, pattern, special_tokens(file, where))
                return
            self._take(content, file, where)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(
                f"{where}: not a tokenizer.json that can be used ({error!r}); run the tokens stage or the import again"
            ) from error

    def _take(self, content: str, file: Mapping[str, Any], where: str) -> None:
        """A vocabulary of others."""
        self._content, self.library = content, Library(file, where)
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self.special_tokens = special_tokens(file, where)
        self.special = self.special_tokens.names
        self.chat_template = (file.get(SETTINGS) or {}).get("chat_template")
        self._engine: _Engine = self.library
        self._hold(self.library.bytes_of, self.library.of_byte)

    def _make(
        self, content: str, names: Sequence[str], merges: NDArray[np.int32], pattern: str, special: SpecialTokens
    ) -> Tokenizer:
        """A vocabulary of ours: the names of its tokens, its merges (left, right, what they make) and what it is cut
        by."""
        self._content, self.library, self.chat_template = content, None, None
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self.special_tokens, self.special = special, special.names
        apart = set(special.names.values())
        data, ends = bytes_of_names(["" if token in apart else name for token, name in enumerate(names)])
        numbers = {name: token for token, name in enumerate(names) if len(name) == 1}
        self._bytes, self._ends, self.vocab_size = data, ends, len(names)
        self._of_byte = np.array([numbers[character] for character in CHARACTERS], dtype=np.int32)
        self._engine = OwnEncoder(
            ranks_of(merges, self._of_byte), pattern == SUPERWORDS, pattern != WORDS_WITHOUT_MARKS
        )
        return self

    def _hold(self, bytes_of: Sequence[bytes], of_byte: NDArray[np.int32]) -> None:
        self.vocab_size = len(bytes_of)
        self._bytes, self._of_byte = b"".join(bytes_of), of_byte
        self._ends = np.cumsum([len(each) for each in bytes_of], dtype=np.int64)

    @classmethod
    def learned(
        cls, content: str, names: Sequence[str], merges: NDArray[np.int32], pattern: str, special: SpecialTokens
    ) -> Tokenizer:
        """One whose parts are at hand already, so that its tokenizer.json, `content`, is not read."""
        return cls.__new__(cls)._make(content, names, merges, pattern, special)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            InputError: missing, unreadable, or as `__init__`.
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

    @property
    def text(self) -> str:
        """Its tokenizer.json, byte for byte as it was read or learned."""
        return self._content

    def standard_json(self) -> str:
        """Its tokenizer.json as `tokenizers` and `transformers` read it: without our own key, "lmforge"."""
        return self._content if self.library is None else standard_json(orjson.loads(self._content))

    @property
    def end_of_text(self) -> int:
        """What a model gives when a text has ended."""
        return self.special_tokens.end_of_text

    @property
    def begin(self) -> int:
        """What stands before each document: BOS where the tokenizer puts one, else the end of the text before."""
        return self.special_tokens.begin

    @property
    def superwords(self) -> bool:
        """Whether its merges cross spaces (SuperBPE)."""
        return isinstance(self._engine, OwnEncoder) and self._engine.superwords

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; never a special one. A lone surrogate, which UTF-8 cannot write, becomes U+FFFD."""
        return list(self.encode_arrays([text])[0].tolist())

    def encode_document(self, text: str) -> list[int]:
        """The tokens of the beginning of a document: what stands before it, once, and those of `text`."""
        return [self.begin, *self.encode(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        tokens, ends = self.encode_arrays(texts)
        stops = ends.tolist()
        return [tokens[start:stop].tolist() for start, stop in zip([0, *stops], stops, strict=False)]

    def encode_arrays(self, texts: Sequence[str]) -> _Encoded:
        """(the tokens of all texts one after another, int32; where those of each text end). The fast way: nothing
        becomes a list."""
        return self._engine.encode(texts)

    def encode_spans(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """(the tokens of a text; (tokens, 2) int64: the first character that a token has a part of, and the one after
        its last)."""
        if self.library:
            return self.library.spans(text)
        tokens = self.encode(text)
        if not tokens:
            return [], np.empty((0, 2), dtype=np.int64)
        ends = np.cumsum([len(self.token_bytes(token)) for token in tokens], dtype=np.int64)
        data = as_bytes(without_surrogates(text).encode())
        before = np.concatenate(([0], np.cumsum((data & 0xC0) != 0x80)))  # characters begun before each byte
        starts = np.concatenate(([0], ends[:-1]))
        return tokens, np.stack((before[starts + 1] - 1, before[ends]), 1)

    def missing(self, tokens: NDArray[Any], size: int) -> int:
        """How much of a text of `size` UTF-8 bytes its tokens do not say (bytes, or unknown tokens); 0 where every byte
        has a token."""
        return self.library.missing(tokens, size) if self.library else 0

    def encode_bytes(self, data: bytes) -> list[int]:
        """The tokens of any bytes: `encode` of what is UTF-8, one token a byte for the rest. `decode_bytes` gives
        `data` back, where every byte has a token; others are left out."""
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        tokens: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                of_byte = self._of_byte[as_bytes(part.encode("utf-8", "surrogateescape"))]
                tokens += of_byte[of_byte >= 0].tolist()
            elif part:
                tokens += self.encode(part)
        return tokens

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the text that tokens stand for (none for special ones; without the blank that SentencePiece puts
        before a text).

        Raises:
            InputError: a token outside the vocabulary.
        """
        data = b"".join(map(self.token_bytes, tokens))
        strips = self.library.strips if self.library else 0
        return data[min(strips, len(data) - len(data.lstrip(b" "))) :]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that tokens stand for; bytes that are not UTF-8 show as U+FFFD.

        Raises:
            InputError: a token outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for inside a text (none for special ones).

        Raises:
            InputError: outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise InputError(
                f"token {token}: outside the vocabulary of {self.vocab_size}; is this another model's tokenizer?"
            )
        start = int(self._ends[token - 1]) if token else 0
        return self._bytes[start : int(self._ends[token])]


def is_own(file: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level BPE cut by one of our patterns, as `lmforge.tokens.bpe` writes it."""
    parts = (file["pre_tokenizer"] or {}).get("pretokenizers") or [{}]
    pattern = parts[0]["pattern"].get("Regex") if parts[0].get("type") == "Split" else None
    return SETTINGS not in file and pattern in OWN_PATTERNS


def _own_vocabulary(file: Mapping[str, Any], where: str) -> tuple[list[str], NDArray[np.int32], str]:
    """The names of the tokens, the merges, and the pattern."""
    vocabulary, merges = file["model"]["vocab"], file["model"]["merges"]
    names = [""] * len(vocabulary)
    for name, token in vocabulary.items():
        names[token] = name
    if (
        not special_names(file).items() <= vocabulary.items()
        or not all(names)
        or any(character not in vocabulary for character in CHARACTERS)
    ):
        raise InputError(f"{where}: a special token or a byte has no token; run the tokens stage again")
    numbers = (vocabulary[part] for left, right in merges for part in (left, right, left + right))
    pairs = np.fromiter(numbers, dtype=np.int32, count=3 * len(merges)).reshape(-1, 3)
    return names, pairs, file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
