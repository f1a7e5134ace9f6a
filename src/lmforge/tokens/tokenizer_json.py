"""Vocabularies that others learned: byte-level BPE in the tokenizer.json that `transformers` keeps, cut and merged by
the library itself.

    theirs ──the end of text changes places with token 0──▶ tokenizer.json ──Library──▶ tokens

GPT-2's, Llama 3's and Qwen's are of this kind. Added tokens (the end of text, chat marks) are names of their own: no
text encodes to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from lmforge.errors import InputError


class Library:
    """Encodes by `tokenizers`, without the added tokens. Threads may share one."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        plain = {**file, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(orjson.dumps(plain).decode())

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(the tokens of all texts one after another; where those of each text end). A lone surrogate becomes
        U+FFFD."""
        whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        found = [each.ids for each in self._tokenizer.encode_batch(whole, add_special_tokens=False)]
        ends = np.cumsum([len(ids) for ids in found], dtype=np.int64)
        return np.array([token for ids in found for token in ids], dtype=np.int32), ends


def is_imported(file: Mapping[str, Any], patterns: Sequence[str]) -> bool:
    """Whether a tokenizer.json cuts texts by other patterns than ours (and is not merely broken): its token 0 is an
    added one."""
    splitters = (file["pre_tokenizer"] or {}).get("pretokenizers") or [{}]
    own = splitters[0].get("type") == "Split" and splitters[0]["pattern"].get("Regex") in patterns
    return not own and any(token["id"] == 0 and token["special"] for token in file["added_tokens"])


def token_names(file: Mapping[str, Any], characters: Sequence[str]) -> list[str]:
    """What each token stands for, in the characters that stand for bytes; "" for special tokens and for ids that
    nothing has."""
    vocabulary: dict[str, int] = file["model"]["vocab"]
    added = {token["id"]: token for token in file["added_tokens"]}
    names = [""] * (1 + max([*vocabulary.values(), *added]))
    for name, token in vocabulary.items():
        names[token] = name
    for token, entry in added.items():
        names[token] = "" if entry["special"] else "".join(characters[byte] for byte in entry["content"].encode())
    return names


def with_end_first(content: str, end: int, where: str) -> str:
    """The text of a tokenizer.json in which token `end` is token 0, and the token that was 0 has its number.

    Raises:
        InputError: not byte-level BPE, or the end of text is not an added special token.
    """
    try:
        file = orjson.loads(content)
        model, vocabulary = file["model"], file["model"]["vocab"]
        kinds = [
            file["pre_tokenizer"]["type"],
            *(each["type"] for each in file["pre_tokenizer"].get("pretokenizers", ())),
        ]
        if model.get("type") != "BPE" or "ByteLevel" not in kinds:
            raise InputError(
                f"{where}: not a byte-level BPE ({model.get('type')} cut by {' and '.join(kinds)}); GPT-2's, Llama 3's "
                "and Qwen's kind "
                "can be imported, SentencePiece's cannot"
            )
        new = {0: end, end: 0}
        for token in file["added_tokens"]:
            token["id"] = new.get(token["id"], token["id"])
        if not any(token["id"] == 0 and token["special"] for token in file["added_tokens"]):
            raise InputError(
                f"{where}: token {end}, the end of text by config.json, is no special token there; correct "
                "eos_token_id in config.json"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where}: not a tokenizer.json ({error}); save the checkpoint with transformers again"
        ) from error
    model["vocab"] = {name: new.get(token, token) for name, token in vocabulary.items()}
    return orjson.dumps(file).decode()
