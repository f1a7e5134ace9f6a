"""A model as everything that answers, scores or serves wants it: with its tokenizer, its name and what was done to
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.chat import STOP, has_chat_tokens, render_chat, stop_tokens

CHAT_STOP = (*(f"\n{text}" for text in STOP), *STOP)  # of a transcript; the blank line before the next turn goes too


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    `name` is what clients call it, `directory` where it was read from, `compression` the entries of the steps it went
    through, `notes` what its format tells beside, `fingerprint` the first digits of its files' hash (empty where the
    format keeps none).
    """

    model: GPT
    tokenizer: Tokenizer
    name: str
    directory: Path
    compression: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    @property
    def config(self) -> GPTConfig:
        """The shape of its network."""
        return self.model.config

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the compression steps that it went through."""
        return tuple(str(entry.get("method", "unknown")) for entry in self.compression)

    @property
    def context(self) -> int:
        """The most tokens, prompt and answer together, that the model reads."""
        return self.model.config.context

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: every special one."""
        return stop_tokens(self.tokenizer)

    @property
    def chat_stop(self) -> tuple[str, ...]:
        """The texts that end an answer in a chat: none where chat tokens do."""
        return () if has_chat_tokens(self.tokenizer) else CHAT_STOP

    def document(self, text: str) -> list[int]:
        """`text` as the beginning of a document: what stands before it in training does here."""
        return self.tokenizer.encode_document(text)

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation (`role` and `content` of each turn) up to the point where the assistant speaks next."""
        return render_chat(messages, self.tokenizer)
