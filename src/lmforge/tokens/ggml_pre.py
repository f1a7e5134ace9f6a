"""What llama.cpp's names of pre-tokenizers stand for, as parts of a tokenizer.json.

    tokenizer.ggml.pre = "smollm" ──▶ Digits, ByteLevel        "llama-bpe" ──▶ Split by cl100k's kind of pattern, …

llama.cpp tells a vocabulary's pre-tokenizer by the ids of one test text and keeps a name of it (`llama-vocab.cpp`); the
patterns here are those of the tokenizers that the names were given to. A name that is not here is refused: another
pattern would give other ids, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPT2, DIGITS, CL100K = "gpt2", "digits", "cl100k"  # kinds that are no single pattern, or that several names share
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    CL100K: rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    "tekken": _CASED % ("", "", r"\p{N}"),
    "o200k": _CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?", r"\p{N}{1,3}"),
}
# name → kind; the first name of a kind is the one that is written
NAMES = {
    "gpt-2": GPT2,
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "roberta-bpe", "trillion", "exaone4", "gigachat"), GPT2),
    "smollm": DIGITS,
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    "llama-bpe": CL100K,
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe", "glm4"), CL100K),
    "qwen2": "qwen2",
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), "qwen2"),
    "tekken": "tekken",
    "gpt-4o": "o200k",
    "llama4": "o200k",
}
# vocabularies whose words are looked up whole before anything is merged, and those that begin texts with BOS
IGNORE_MERGES = frozenset(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken"))
ADD_BOS = IGNORE_MERGES
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def pre_tokenizer(name: str) -> dict[str, Any] | None:
    """The `pre_tokenizer` of a tokenizer.json for one of llama.cpp's names; None where the name is not known."""
    kind = NAMES.get(name)
    if kind is None:
        return None
    if kind == GPT2:
        return {**_BYTE_LEVEL, "use_regex": True}
    if kind == DIGITS:
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [first, {**_BYTE_LEVEL, "use_regex": True}]}
    first = {"type": "Split", "pattern": {"Regex": PATTERNS[kind]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, {**_BYTE_LEVEL, "use_regex": False}]}


def name_of(component: Mapping[str, Any] | None, ignore_merges: bool) -> str | None:
    """llama.cpp's name of a tokenizer.json's `pre_tokenizer`; None where llama.cpp cuts texts in no such way. Of names
    that cut alike, one that treats merges as the vocabulary does."""
    wanted = _essential(component)
    alike = [name for name in NAMES if _essential(pre_tokenizer(name)) == wanted]
    return next((name for name in alike if (name in IGNORE_MERGES) == ignore_merges), next(iter(alike), None))


def _essential(component: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """What of a pre-tokenizer decides where it cuts."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [part for each in component["pretokenizers"] for part in _essential(each)]
    if component["type"] == "ByteLevel":
        return [("ByteLevel", component.get("add_prefix_space", True), component.get("use_regex", True))]
    if component["type"] == "Split":
        pattern = component["pattern"]
        return [("Split", pattern.get("Regex", pattern.get("String")), component["behavior"], component.get("invert"))]
    return [(component["type"], component.get("individual_digits"))]
