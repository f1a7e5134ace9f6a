"""Vocabularies that others learned, as they are: any tokenizer.json that `tokenizers` runs, encoded by `tokenizers`, so
that the ids are its own.

    byte-level BPE     GPT-2's kind, also with an alphabet that lacks some of the 256 bytes
    SentencePiece      BPE and Unigram as tokenizer.json holds them: U+2581 for the blank, <0x0A> for a byte that no
                       token has (Kudo & Richardson 2018)
    WordPiece and whole words

What a vocabulary has no token for becomes what the library makes of it: its unknown token, or nothing; `missing`
counts it.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.tokens.byte_alphabet import BYTE_OF, CHARACTERS
from lmforge.tokens.pretokenize import without_surrogates
from lmforge.tokens.special_tokens import SETTINGS, special_names

BLANK = "\u2581"  # SentencePiece's
_BYTE = re.compile(r"<0x([0-9A-F]{2})>$")
_SECRET = secrets.token_hex(8)  # of this process: in names of special tokens that no text can have


class Library:
    """Encodes by `tokenizers`. Threads may share one.

    `names[id]` is each token's, "" where nothing has the id; `bytes_of[id]` what it stands for, b"" for special tokens;
    `of_byte` (256,) the token of each byte, −1 where there is none. `strips`: blanks that decoding takes from the
    beginning of a text, since encoding put them there.
    """

    def __init__(self, file: Mapping[str, Any], where: str) -> None:
        """Raises InputError where the library cannot run it (`where` names it)."""
        self._file = {**{key: value for key, value in file.items() if key != SETTINGS}, **_WITHOUT_EXTRAS}
        _runnable(self._file, where)
        self._text = self._renamed(where)
        self._marked: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self.names = _names(file)
        special = set(special_names(file).values())
        self.bytes_of = [b"" if token in special else each for token, each in enumerate(_bytes(file, self.names))]
        self.of_byte = _byte_tokens(file, self.names)
        self.strips = _stripped(file)
        self.byte_level = _is_byte_level(file)
        unknown = _unknown(file)
        self.unknown = self.names.index(unknown) if unknown in self.names else -1

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(the tokens of all texts one after another; where those of each text end). A lone surrogate becomes
        U+FFFD."""
        whole = [without_surrogates(text) for text in texts]
        ids = [each.ids for each in self._text.encode_batch_fast(whole, add_special_tokens=False)]
        ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
        return np.array([token for each in ids for token in each], dtype=np.int32), ends

    def spans(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """(the tokens of a text; (tokens, 2) the first character of each and the one after its last). Where bytes of a
        word have no token, the library counts the word's later tokens from too early a place."""
        encoding = self._text.encode(without_surrogates(text), add_special_tokens=False)
        return encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def marked_spans(self, text: str, renamed: bool = False) -> tuple[list[int], NDArray[np.int64]]:
        """`spans` of a text in which the names of special tokens are those tokens; with `renamed` only where they are
        written as `secret_name`."""
        with self._lock:
            if self._marked is None and not renamed:
                self._marked = _runnable(self._file, "tokenizer.json")
        library = self._text if renamed or self._marked is None else self._marked
        encoding = library.encode(without_surrogates(text), add_special_tokens=False)
        return encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def _renamed(self, where: str) -> tokenizers.Tokenizer:
        """The library's tokenizer with names for its special tokens that no text can have. (That the library can be
        told to leave added tokens alone is not enough: a Unigram model finds them among its pieces.)"""
        number = special_names(self._file)
        others = {name: secret_name(token) for name, token in number.items()}
        model = dict(self._file["model"])
        vocabulary = model["vocab"]
        if isinstance(vocabulary, Mapping):
            model["vocab"] = {others.get(name, name): token for name, token in vocabulary.items()}
        else:
            model["vocab"] = [[others.get(name, name), score] for name, score in vocabulary]
        if model.get("unk_token") in others:
            model["unk_token"] = others[model["unk_token"]]
        added = [
            {**token, "content": others.get(token["content"], token["content"])} for token in self._file["added_tokens"]
        ]
        result = _runnable({**self._file, "model": model, "added_tokens": added}, where)
        for token in added:
            given = result.token_to_id(token["content"])
            if given != token["id"]:
                raise InputError(
                    f"{where}: added token {token['id']} is number {given} to `tokenizers`: ids have gaps or are taken "
                    "twice; save the tokenizer with transformers again"
                )
        return result

    def missing(self, tokens: NDArray[Any], size: int) -> int:
        """How much of a text of `size` bytes its `tokens` do not say: bytes of a byte-level vocabulary, else unknown
        tokens."""
        if self.unknown >= 0 and not self.byte_level:
            return int((tokens == self.unknown).sum())
        return max(0, size + self.strips - sum(len(self.bytes_of[token]) for token in tokens.tolist()))


def secret_name(token: int) -> str:
    """What a special token is called where texts that may have its name stand beside it."""
    return f"\ufdd0{_SECRET}:{token}\ufdd1"


_WITHOUT_EXTRAS: dict[str, Any] = {"post_processor": None, "truncation": None, "padding": None}


def _runnable(file: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(orjson.dumps(file).decode())
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{where}: not a tokenizer.json that `tokenizers` {tokenizers.__version__} runs ({error}); save the "
            "checkpoint with transformers again"
        ) from error


def standard_json(file: Mapping[str, Any]) -> str:
    """The tokenizer.json without our key, as other programs read it."""
    return orjson.dumps({key: value for key, value in file.items() if key != SETTINGS}).decode()


def begins_with(file: Mapping[str, Any], where: str) -> int | None:
    """The token that the tokenizer puts before a text by itself (BOS); None where it puts none."""
    plain = {key: value for key, value in file.items() if key != SETTINGS}
    ids = _runnable({**plain, "truncation": None, "padding": None}, where).encode("").ids
    return ids[0] if ids and ids[0] in special_names(file).values() else None


def _parts(node: Any) -> Iterator[Mapping[str, Any]]:
    """A component of a tokenizer.json and, where it is a sequence, those it is made of."""
    if isinstance(node, Mapping):
        yield node
        for key in ("pretokenizers", "normalizers", "decoders", "processors"):
            for child in node.get(key) or ():
                yield from _parts(child)


def _is_byte_level(file: Mapping[str, Any]) -> bool:
    return any(
        part["type"] == "ByteLevel"
        for key in ("pre_tokenizer", "normalizer", "decoder")
        for part in _parts(file.get(key))
    )


def _vocabulary(file: Mapping[str, Any]) -> dict[str, int]:
    """The names of a model's tokens and their ids; Unigram lists them."""
    vocabulary = file["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return {name: int(token) for name, token in vocabulary.items()}
    return {name: token for token, (name, _) in enumerate(vocabulary)}


def _names(file: Mapping[str, Any]) -> list[str]:
    vocabulary = _vocabulary(file)
    added = {token["content"]: int(token["id"]) for token in file["added_tokens"]}
    names = [""] * (1 + max([*vocabulary.values(), *added.values()]))
    for name, token in {**vocabulary, **added}.items():
        names[token] = name
    return names


def _unknown(file: Mapping[str, Any]) -> str | None:
    model = file["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    unknown = model.get("unk_token")
    return None if unknown is None else str(unknown)


def _bytes(file: Mapping[str, Any], names: Sequence[str]) -> list[bytes]:
    """What each token stands for inside a text."""
    added = {int(token["id"]) for token in file["added_tokens"]}
    if _is_byte_level(file):
        return [
            name.encode() if token in added or any(character not in BYTE_OF for character in name)
            else bytes(BYTE_OF[character] for character in name)
            for token, name in enumerate(names)
        ]  # fmt: skip
    model = file["model"]
    if model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return [
            name.removeprefix(prefix).encode() if name.startswith(prefix) or token in added or not name
            else f" {name}".encode()
            for token, name in enumerate(names)
        ]  # fmt: skip
    blank, fallback = _blank(file), bool(model.get("byte_fallback"))
    result = []
    for token, name in enumerate(names):
        byte = _BYTE.match(name) if fallback else None
        plain = name if token in added else name.replace(blank, " ") if blank else name
        result.append(bytes([int(byte[1], 16)]) if byte else plain.encode())
    return result


def _blank(file: Mapping[str, Any]) -> str | None:
    """The character that stands for a blank in names of tokens."""
    for key in ("decoder", "pre_tokenizer"):
        for part in _parts(file.get(key)):
            if part["type"] == "Metaspace":
                return str(part["replacement"])
            if part["type"] == "Replace" and part.get("content") == " ":
                return str(part["pattern"].get("String", BLANK))
    return None


def _stripped(file: Mapping[str, Any]) -> int:
    """Blanks that decoding takes from the beginning."""
    for part in _parts(file.get("decoder")):
        if part["type"] == "Strip" and part.get("content") == " ":
            return int(part["start"])
        if part["type"] == "Metaspace":
            given = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            return int(given != "never")
        if part["type"] == "WordPiece":
            return 1
    return 0


def _byte_tokens(file: Mapping[str, Any], names: Sequence[str]) -> NDArray[np.int32]:
    numbers = {name: token for token, name in enumerate(names)}
    if _is_byte_level(file):
        wanted = CHARACTERS
    elif file["model"].get("byte_fallback"):
        wanted = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        wanted = [chr(byte) if byte < 128 else "" for byte in range(256)]
    return np.array([numbers.get(name, -1) if name else -1 for name in wanted], dtype=np.int32)
