"""A tokenizer of ours → the vocabulary of a GGUF file, for llama.cpp; the whole tokenizer.json goes with it.

llama.cpp cuts texts only in ways that it has a name for (lmforge.tokens.ggml_pre). A vocabulary that is cut otherwise,
as those that lmforge learns, gets the nearest one, and its tokens may then differ from ours: `exact` says so. Given as
ids, any text is read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from lmforge.errors import InputError
from lmforge.tokens.ggml import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, WHOLE
from lmforge.tokens.ggml_pre import name_of
from lmforge.tokens.tokenizer import Tokenizer

NEAREST = (
    "llama-bpe"  # to the pattern of the vocabularies learned here: words with what stands before, digits in threes
)


class Vocabulary(NamedTuple):
    """What a GGUF file says of a tokenizer: `metadata` by key, and whether llama.cpp then gives the same ids."""

    metadata: dict[str, Any]
    exact: bool


def vocabulary_of(tokenizer: Tokenizer, chat_template: str | None = None) -> Vocabulary:
    """The metadata of a tokenizer, with the template of its chats.

    Raises:
        InputError: a kind of vocabulary that llama.cpp has no place for.
    """
    file: dict[str, Any] = orjson.loads(tokenizer.standard_json())
    model = file["model"]
    kinds = orjson.dumps([file.get("pre_tokenizer"), file.get("decoder"), file.get("normalizer")]).decode()
    if model.get("type") != "BPE":
        raise InputError(
            f"a tokenizer of kind {model.get('type')}: GGUF files for llama.cpp hold BPE; export to transformers"
        )
    special = {int(token["id"]): bool(token["special"]) for token in file["added_tokens"]}
    names = _names(file, tokenizer.vocab_size)
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": names}
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    exact = True
    if "ByteLevel" in kinds:
        pre = name_of(file.get("pre_tokenizer"), bool(model.get("ignore_merges")))
        exact = pre is not None and not file.get("normalizer")
        metadata |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre or NEAREST,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
        types = [_type(token, name, special, names) for token, name in enumerate(names)]
    else:
        metadata |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": _scores(names, merges),
            "tokenizer.ggml.add_space_prefix": '"Prepend"' in kinds or '"always"' in kinds or '"first"' in kinds,
        }
        unknown = model.get("unk_token")
        types = [
            UNKNOWN if name == unknown else BYTE if _is_byte(name) else _type(token, name, special, names)
            for token, name in enumerate(names)
        ]
    metadata["tokenizer.ggml.token_type"] = types
    metadata |= _special(tokenizer)
    if chat_template:
        metadata["tokenizer.chat_template"] = chat_template
    metadata[WHOLE] = tokenizer.text
    return Vocabulary(metadata, exact)


def _names(file: Mapping[str, Any], size: int) -> list[str]:
    """The name of each id; those that nothing has get one that no text has."""
    names = [f"[PAD{token}]" for token in range(size)]
    for name, token in file["model"]["vocab"].items():
        names[token] = name
    for token in file["added_tokens"]:
        names[token["id"]] = token["content"]
    return names


def _type(token: int, name: str, special: Mapping[int, bool], names: list[str]) -> int:
    if token in special:
        return CONTROL if special[token] else USER_DEFINED
    return UNUSED if name == f"[PAD{token}]" else NORMAL


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _scores(names: list[str], merges: list[list[str]]) -> list[float]:
    """SentencePiece's scores that make the merges come in this order; what no merge makes is worth least."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    return [-float(rank.get(name, len(merges))) for name in names]


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """What special tokens are for. What stands before each document is BOS to llama.cpp, where it is not an end that
    the vocabulary's makers put nowhere."""
    special = tokenizer.special_tokens
    own = tokenizer.library is None
    begins = own or special.begin == special.bos
    eos = special.end_of_text if special.eos is None else special.eos
    turn = next((token for token in special.stop if token != eos), None)
    ids = {
        "bos": special.begin if begins else special.bos,
        "eos": eos,
        "eot": turn if tokenizer.chat_template is not None or own else None,
        "padding": special.pad,
    }
    stated: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items() if token is not None
    }
    return {**stated, "tokenizer.ggml.add_bos_token": begins}
