"""Special tokens by what they are for. A vocabulary names them; their numbers mean nothing.

    our own vocabularies   END_OF_TEXT, and CHAT_TOKENS where they were learned for conversations
    others                 what the checkpoint's files say (lmforge.tokens.tokenizer_json), kept in the key "lmforge" of
                           our copy of tokenizer.json; where they say nothing, the names that the field uses

Two marks part documents. `begin` stands before each and is what its first token is predicted from: the beginning of a
text (BOS) where the tokenizer puts one there, else the end of the text before. `end_of_text` is what a model gives when
a text has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmforge.corpus.images import IMAGE_MARK
from lmforge.errors import InputError

END_OF_TEXT = "<|endoftext|>"
# who speaks, and the end of a turn (lmforge.tokens.chat)
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
IMAGE = IMAGE_MARK  # as a token: a patch of an image (lmforge.tokens.images)
SETTINGS = "lmforge"  # the key of a tokenizer.json that holds what `tokenizers` has no place for
# the end of a text and the end of a turn by the names that published vocabularies give them
TEXT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|eos|>", "</s>", "<eos>", "<|eot|>", "[EOS]", "<end_of_text>")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endofturn|>", "<|turn_end|>")
TEXT_BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>", "<|bos|>", "[BOS]", "<|startoftext|>")
PADDINGS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>")
_NO_END = ("<unk>", "[UNK]", "<|unk|>", *TEXT_BEGINNINGS, *PADDINGS)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a vocabulary's special tokens: `names` of them all, and what some are for.

    `bos`, `eos` and `pad` are what the vocabulary's own files call so, None where they name none. `stop` holds all that
    end an answer: the ends of texts and of turns.
    """

    names: Mapping[str, int]
    end_of_text: int
    begin: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    stop: tuple[int, ...] = ()

    def name(self, token: int | None) -> str:
        """What a special token is called; "" for None and for any other token."""
        return next((name for name, each in self.names.items() if each == token), "")

    def to_json(self) -> dict[str, Any]:
        """What the key "lmforge" of a tokenizer.json says of them."""
        return {
            "end_of_text": self.end_of_text, "begin": self.begin, "bos": self.bos, "eos": self.eos, "pad": self.pad,
            "stop": list(self.stop),
        }  # fmt: skip


def special_names(file: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens of a tokenizer.json by name, in the order of their ids."""
    added = sorted(file["added_tokens"], key=lambda token: int(token["id"]))
    return {token["content"]: token["id"] for token in added if token["special"]}


def special_tokens(file: Mapping[str, Any], where: str) -> SpecialTokens:
    """Those of a tokenizer.json: as its key "lmforge" says, or guessed from their names.

    Raises:
        InputError: no special token ends a text, or the key names one that is not there.
    """
    names = special_names(file)
    settings = file.get(SETTINGS)
    if settings is None:
        return guessed(names, where)
    given = {key: settings.get(key) for key in ("end_of_text", "begin", "bos", "eos", "pad")}
    stop = tuple(settings.get("stop", ()))
    unknown = [token for token in (*given.values(), *stop) if token is not None and token not in names.values()]
    if unknown or given["end_of_text"] is None:
        what = f"token {unknown[0]} is no special token" if unknown else "no end of text"
        raise InputError(f"{where}: {SETTINGS}: {what}; import the checkpoint again")
    given["begin"] = given["end_of_text"] if given["begin"] is None else given["begin"]
    return SpecialTokens(names, **given, stop=stop or (given["end_of_text"],))


def guessed(
    names: Mapping[str, int], where: str, eos: Iterable[int] = (), bos: int | None = None, pad: int | None = None
) -> SpecialTokens:
    """From the special tokens' names, and the ids that a checkpoint's files give: `eos`, one or several, `bos`, `pad`.

    Raises:
        InputError: no special token ends a text.
    """
    ends = list(eos)
    known = [names[name] for name in TEXT_ENDS if name in names]
    first = next((name for name, token in names.items() if token == 0), None)
    of_old = [] if ends or first is None or first in _NO_END else [0]  # imports of earlier versions put the end first
    candidates = [*(token for token in ends if token in known), *of_old, *known, *ends]
    if not candidates:
        raise InputError(
            f"{where}: no special token ends a text; name it in eos_token_id of the checkpoint's config.json"
        )
    turns = [names[name] for name in TURN_ENDS if name in names]
    stop = dict.fromkeys((*ends, candidates[0], *turns) if ends else (candidates[0], *names.values()))
    return SpecialTokens(
        names,
        end_of_text=candidates[0],
        begin=candidates[0],
        bos=bos if bos is not None else next((names[name] for name in TEXT_BEGINNINGS if name in names), None),
        eos=ends[0] if ends else candidates[0],
        pad=pad if pad is not None else next((names[name] for name in PADDINGS if name in names), None),
        stop=tuple(stop),
    )
