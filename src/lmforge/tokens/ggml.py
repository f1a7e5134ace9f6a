"""The vocabulary of a GGUF file ⇄ a tokenizer.json.

    tokenizer.ggml.model, .pre, .tokens, .token_type, .merges or .scores, …   ──▶ what `tokenizers` runs
    tokenizer.chat_template, .ggml.bos_token_id, .add_bos_token, …            ──▶ its key "lmforge"

    gpt2     byte-level BPE: merges as they are, cut as tokenizer.ggml.pre says (lmforge.tokens.ggml_pre)
    llama    SentencePiece's BPE: the pair whose joint piece has the highest score is merged first (Kudo & Richardson
             2018), so merges are all cuts of every piece into two, in the order of the scores

Ids are those of the file. Where it carries the whole tokenizer.json (`tokenizer.huggingface.json`), that is taken, if
it has as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from lmforge.errors import InputError
from lmforge.progress import log
from lmforge.tokens.ggml_pre import ADD_BOS, IGNORE_MERGES, NAMES, pre_tokenizer
from lmforge.tokens.library import BLANK
from lmforge.tokens.special_tokens import SETTINGS
from lmforge.tokens.tokenizer import is_own
from lmforge.tokens.tokenizer_json import described

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
WHOLE = "tokenizer.huggingface.json"
ENDS = ("eos", "eot", "eom")
Metadata = Mapping[str, Any]


def tokenizer_from(metadata: Metadata, where: str) -> str:
    """The text of a tokenizer.json of ours that gives the ids of a GGUF file's vocabulary.

    Raises:
        InputError: there is no vocabulary, one of a kind or a pre-tokenizer that cannot be rebuilt (names the key), or
            one that does not hold together.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{where}: no tokenizer.ggml.tokens: a file without vocabulary; get one that has it")
    whole = _whole(metadata, len(tokens))
    if whole is not None:
        return whole
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise InputError(
            f"{where}: tokenizer.ggml.model = {kind!r}: gpt2 (byte-level BPE) and llama (SentencePiece) "
            "can be rebuilt; convert the model's Hugging Face folder instead: lmforge import FOLDER MODEL"
        )
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(f"{where}: {len(types)} token types for {len(tokens)} tokens; the file is damaged")
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in (*ENDS, "bos", "padding", "unknown")}
    for name, token in ids.items():
        if token is not None and not 0 <= token < len(tokens):
            raise InputError(
                f"{where}: tokenizer.ggml.{name}_token_id = {token}, of {len(tokens)} tokens; the file is damaged"
            )
    pre = str(metadata.get("tokenizer.ggml.pre") or "")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in ADD_BOS))
    parts = (
        _byte_level(metadata, tokens, pre, where) if kind == "gpt2" else _sentencepiece(metadata, tokens, types, ids)
    )
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types, ids),
        "post_processor": _with_bos(tokens[ids["bos"]], ids["bos"]) if add_bos and ids["bos"] is not None else None,
        **parts,
    }
    template = metadata.get("tokenizer.chat_template")
    return described(
        orjson.dumps(content).decode(),
        where,
        eos=[ids[name] for name in ENDS],
        bos=ids["bos"],
        pad=ids["padding"],
        add_bos=add_bos and ids["bos"] is not None,
        chat_template=template if isinstance(template, str) and template else None,
    )


def _whole(metadata: Metadata, tokens: int) -> str | None:
    """The tokenizer.json that the file carries, where it is one of ours for as many tokens."""
    content = metadata.get(WHOLE)
    if not isinstance(content, str):
        return None
    try:
        file = orjson.loads(content)
        ids = [*(int(token["id"]) for token in file["added_tokens"]), *file["model"]["vocab"].values()]
        own = 1 + max(ids) == tokens and (SETTINGS in file or is_own(file))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return content if own else None


def _byte_level(metadata: Metadata, tokens: Sequence[str], pre: str, where: str) -> dict[str, Any]:
    """Model, pre-tokenizer and decoder of byte-level BPE."""
    if not pre:
        log(f"{where}: no tokenizer.ggml.pre: texts are cut as GPT-2 cuts them; ids may differ from the original's")
        pre = "gpt-2"
    component = pre_tokenizer(pre)
    if component is None:
        raise InputError(
            f"{where}: tokenizer.ggml.pre = {pre!r}: how it cuts texts is not known here; known: {', '.join(NAMES)}; "
            "import the model's Hugging Face folder instead"
        )
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise InputError(f"{where}: no tokenizer.ggml.merges, which a vocabulary of kind gpt2 needs; get another file")
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre in IGNORE_MERGES,
        "vocab": _numbered(tokens, where),
        "merges": [merge.split(" ", 1) for merge in merges],
    }
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {"normalizer": None, "pre_tokenizer": component, "decoder": decoder, "model": model}


def _sentencepiece(
    metadata: Metadata, tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int | None]
) -> dict[str, Any]:
    """Model, normalizer and decoder of SentencePiece's BPE with bytes for what has no piece."""
    numbers = {token: number for number, token in enumerate(tokens)}
    given = metadata.get("tokenizer.ggml.merges")
    merges = [merge.split(" ", 1) for merge in given] if isinstance(given, list) else _merges(metadata, tokens, types)
    unknown = (
        ids["unknown"]
        if ids["unknown"] is not None
        else next((number for number, kind in enumerate(types) if kind == UNKNOWN), None)
    )
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": BYTE in types,
        "ignore_merges": False,
        "vocab": numbers,
        "merges": merges,
    }
    blank: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizers = [{"type": "Prepend", "prepend": BLANK}, blank] if prefix else [blank]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model,
    }


def _merges(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> list[list[str]]:
    """All cuts of pieces into two pieces, the likeliest piece first. Gemma's scores say nothing; its pieces stand in
    the order in which they were made."""
    scores = metadata.get("tokenizer.ggml.scores")
    by_place = not isinstance(scores, list) or str(metadata.get("general.architecture", "")).startswith("gemma")
    pieces = {token: number for number, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    cuts: list[tuple[float, int, int, str, str]] = []
    for token, number in pieces.items():
        rank = float(number) if by_place else -float(scores[number])  # type: ignore[index]
        for at in range(1, len(token)):
            left, right = pieces.get(token[:at]), pieces.get(token[at:])
            if left is not None and right is not None:
                cuts.append((rank, left, right, token[:at], token[at:]))
    return [[left, right] for _, _, _, left, right in sorted(cuts)]


def _numbered(tokens: Sequence[str], where: str) -> dict[str, int]:
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if numbers[token] != number)
        raise InputError(f"{where}: tokenizer.ggml.tokens has {twice!r} twice; the file is damaged, get it again")
    return numbers


def _added(tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Control tokens, and those that end or begin a text, are special; user-defined ones are text that is kept
    whole."""
    special = {token for token, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)}
    special |= {token for token in ids.values() if token is not None}
    whole = special | {token for token, kind in enumerate(types) if kind == USER_DEFINED and tokens[token]}
    return [
        {
            "id": token,
            "content": tokens[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in special,
        }
        for token in sorted(whole)
    ]


def _with_bos(name: str, token: int) -> dict[str, Any]:
    """A post-processor that puts BOS before a text."""
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": text, "type_id": number}} for number, text in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
