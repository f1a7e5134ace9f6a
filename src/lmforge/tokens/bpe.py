r"""Text ↔ tokens: byte-level BPE (Sennrich et al. 2016, algorithm 1, over bytes as in GPT-2), learned and stored by `tokenizers`.

    text ──PATTERN──▶ pieces ──each piece's UTF-8 bytes, merged in the order learned──▶ tokens

Every byte is a token of its own, so any bytes can be written and read back. Special tokens stand for no bytes and no text ever encodes to
one: token 0, the end of a text, and, in a vocabulary learned for conversations, tokens 1 to 4 (CHAT_TOKENS).

PATTERN decides what a token may not cross. Bytes per token on a twentieth of the files of Python 3.11's library, held out, vocabularies
of 4,096 and 8,192 tokens:

    learned from all other files       GPT-2 3.545 3.822   cl100k (GPT-4) 3.665 4.006   cl100k with line end + indentation 3.718 4.063
    learned from a quarter of them     the last, less the contractions 3.675 4.036   and space + digits (PATTERN) 3.701 4.069
                                       and signs + line end + indentation 3.813 4.255

The last is shorter still, but there "):" is another token where a line ends after it: a prompt that ends in "def f(x):" would be of a
form never seen in training. Contractions need no rule of their own: "don't" is "don" and "'t" already, while 's would cut 'self in two.

Encoding is our own loop over the same pattern and merges, since the library keeps track of offsets that nobody here needs: the pieces
of a language repeat, and a dictionary from piece to tokens answers nearly all of them (about four times the library's speed on one core).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from lmforge.errors import InputError
from lmforge.record import write_atomic

END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # who speaks, and the end of a turn (lmforge.tokens.chat)
# A word with the sign or space before it; up to three digits; a run of signs; line ends and the indentation after them; other blanks.
PATTERN = r"[^\r\n\p{L}\p{N}]?[\p{L}]+| ?[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
LONGEST = 64  # bytes of a token: lines of dashes would otherwise fill a small vocabulary
_COVERED = 0x3000  # code points whose classes are worked out for Python's `re`
# A text with any of these takes the library's own, slower path (\x1c-\x1f are blanks in `re` alone).
_BEYOND = re.compile(f"[\x1c-\x1f{chr(_COVERED)}-\U0010ffff]")
_MEMO_PIECES = 1 << 20  # about 150 MB when full
_MEMO_CHARS = 48  # longer pieces hardly ever come again


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte inside tokenizer.json (GPT-2's table: printable Latin-1 as itself)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_CHARACTER = _byte_characters()
_BYTE = {character: byte for byte, character in enumerate(_CHARACTER)}


class Tokenizer:
    """A vocabulary and its merges. `vocab_size` counts every token, `end_of_text` is 0, `sha256` is that of its tokenizer.json.

    `special` maps the names of the special tokens to their ids: the end of a text, and CHAT_TOKENS where the vocabulary has them.
    """

    end_of_text = 0

    def __init__(self, content: str, where: str = "tokenizer.json") -> None:
        """From the text of a tokenizer.json.

        Raises:
            InputError: not JSON, or not a byte-level BPE with the end of text as token 0; `where` names it.
        """
        try:
            self._library = tokenizers.Tokenizer.from_str(content)
            splitter = json.loads(content)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            self._pieces = re.compile(_for_python(splitter))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{where}: not a tokenizer that lmforge wrote ({error}); run the tokens stage again") from error
        self._content = content
        self._library.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self.vocab_size: int = self._library.get_vocab_size()
        names = [self._library.id_to_token(token) or "" for token in range(self.vocab_size)]
        ids = {name: token for token, name in enumerate(names)}
        if names[0] != END_OF_TEXT or "" in names or any(character not in ids for character in _CHARACTER):
            raise InputError(f"{where}: token 0 is not {END_OF_TEXT} or a byte has no token; run the tokens stage again")
        self._of_byte = [ids[character] for character in _CHARACTER]
        self.special: Mapping[str, int] = {name: ids[name] for name in (END_OF_TEXT, *CHAT_TOKENS) if name in ids}
        self._bytes = [b"" if name in self.special else bytes(map(_BYTE.__getitem__, name)) for name in names]
        self._memo = _Memo(self._library.model)

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
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        beyond = [_BEYOND.search(text) is not None for text in texts]
        slow = [_without_surrogates(text) for text, yes in zip(texts, beyond, strict=True) if yes]
        found = iter(self._library.encode_batch_fast(slow, add_special_tokens=False) if slow else ())
        lookup, pieces = self._memo.__getitem__, self._pieces.findall
        result: list[list[int]] = []
        for text, yes in zip(texts, beyond, strict=True):
            result.append(next(found).ids if yes else list(chain.from_iterable(map(lookup, pieces(text)))))
            if len(self._memo) > _MEMO_PIECES:
                self._memo.clear()
        return result

    def encode_bytes(self, data: bytes) -> list[int]:
        """The tokens of any bytes: `encode` of what is UTF-8, one token a byte for the rest. `decode_bytes` gives `data` back."""
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        tokens: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                tokens += (self._of_byte[byte] for byte in part.encode("utf-8", "surrogateescape"))
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
            raise InputError(f"token {token}: outside the vocabulary of {self.vocab_size}; is this another model's tokenizer?")
        return self._bytes[token]


class _Memo(dict[str, tuple[int, ...]]):
    """Piece → tokens, filled as pieces are met."""

    def __init__(self, model: models.Model) -> None:
        super().__init__()
        self.model = model

    def __missing__(self, piece: str) -> tuple[int, ...]:
        tokens = tuple(token.id for token in self.model.tokenize("".join(map(_CHARACTER.__getitem__, piece.encode()))))
        if len(piece) <= _MEMO_CHARS:
            self[piece] = tokens
        return tokens


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a pair written as two halves is one character
    return text


def _for_python(pattern: str) -> str:
    r"""The library's pattern (Oniguruma) in the spelling of `re`: \p{L} and \p{N}, always inside brackets, as ranges."""
    return pattern.replace(r"\p{L}", _members(r"\p{L}")).replace(r"\p{N}", _members(r"\p{N}"))


@cache
def _members(name: str) -> str:
    """The inside of a character class: the code points below `_COVERED` that the library, by its Unicode version, puts in `name`."""
    everything = "".join(map(chr, range(_COVERED)))
    others = pre_tokenizers.Split(Regex(name), "removed").pre_tokenize_str(everything)
    inside = np.ones(_COVERED + 2, dtype=bool)
    inside[[0, -1]] = False
    for _, (start, stop) in others:
        inside[start + 1 : stop + 1] = False
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return "".join(f"\\u{start:04x}-\\u{stop - 1:04x}" for start, stop in edges.reshape(-1, 2).tolist())


def train_tokenizer(documents: Iterable[str], vocab_size: int, chat: bool = False) -> Tokenizer:
    """Learn a vocabulary: the commonest pair of neighbours becomes a token, again and again. The same texts give the same bytes.

    A pair seen once is not worth a token, nor is one longer than 64 bytes. With `chat` it begins with CHAT_TOKENS too.

    Raises:
        InputError: `vocab_size` is more than these texts support, or less than the tokens that are always there (257; 261 with `chat`).
    """
    special = (END_OF_TEXT, *CHAT_TOKENS) if chat else (END_OF_TEXT,)
    least = 256 + len(special)
    if vocab_size < least:
        more = " and the chat tokens" if chat else ""
        raise InputError(f"tokens.vocab_size: {vocab_size} has no room for 256 bytes and the end of text{more}; set it to {least} or more")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, max_token_length=LONGEST, initial_alphabet=sorted(_CHARACTER),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in special], show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(map(_without_surrogates, documents), trainer)
    found = library.get_vocab_size()
    if found < vocab_size:
        raise InputError(
            f"tokens.vocab_size: {vocab_size} is more than these texts support ({found - least} merges found); "
            f"set tokens.vocab_size to at most {found} or add texts"
        )
    return Tokenizer(library.to_str())
