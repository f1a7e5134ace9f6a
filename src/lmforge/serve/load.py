"""MODEL on the command line → the model and the tokenizer it was trained with.

runs/laptop                                   a run: its compressed model if there is one, else its chosen model
runs/laptop/train/checkpoints/step-00000500   a checkpoint
runs/laptop/compressed                        any saved model
runs/reviews/model/adapter                    an adapter, with the model that it belongs to
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lmforge.compress.chain import load
from lmforge.errors import InputError
from lmforge.formats.native import CONFIG, TOKENIZER, read_config
from lmforge.model.gpt import GPT
from lmforge.record import MANIFEST, content_hash, hash_file
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.chat import STOP, has_chat_tokens, render_chat, stop_tokens
from lmforge.train.adapters import ADAPTER_CONFIG, base_of, load_with_adapter

Which = Literal["auto", "model", "compressed"]
CHAT_STOP = (*(f"\n{text}" for text in STOP), *STOP)  # of a transcript; the blank line before the next turn goes too


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer: `name` is what clients call it, `methods` the compression steps it went through."""

    model: GPT
    tokenizer: Tokenizer
    name: str
    directory: Path
    methods: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def context(self) -> int:
        """The most tokens, prompt and answer together, that the model reads."""
        return self.model.config.context

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the ends of texts and turns."""
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


def resolve(path: Path, which: Which = "auto") -> Path:
    """The directory of the saved model that `path` (a run, a checkpoint or a model) means.

    Of a run, "auto" takes `compressed/` when it is complete, else `model/`.

    Raises:
        InputError: nothing there that can be served; says what was looked for.
    """
    if not path.is_dir():
        cause = "is a file, not a folder" if path.exists() else "no such folder"
        raise InputError(f"{path}: {cause}; give a run (runs/NAME), a checkpoint (…/step-N) or a folder with {CONFIG}")
    if (path / CONFIG).is_file():
        if which != "auto":
            raise InputError(
                f"{path}: is itself a model, so there is no '{which}' in it; leave that choice out, or give a run"
            )
        return path
    wanted = ("compressed", "model") if which == "auto" else (which,)
    for name in wanted:
        if content_hash(path / name) is not None:
            return path / name
    looked = " and ".join(f"{name}/" for name in wanted)
    state = "incomplete" if any((path / name).is_dir() for name in wanted) else "not there"
    raise InputError(
        f"{path}: no model to serve; looked for {CONFIG} and for a complete {looked} (with {MANIFEST}): {state}; "
        "run the train or compress stage first, or give a checkpoint"
    )


def load_served(path: Path, which: Which = "auto") -> LoadedModel:
    """Load what `path` means (see `resolve`; or the folder of an adapter, merged into its base), every file checked
    against its manifest.

    Raises:
        InputError: no model there, a file was altered, or the tokenizer is not the one the model was trained with.
    """
    adapter = path if (path / ADAPTER_CONFIG).is_file() else None
    directory = base_of(adapter) if adapter else resolve(path, which)
    config = read_config(directory)
    tokenizer_file = directory / TOKENIZER
    if not tokenizer_file.is_file():
        raise InputError(f"{tokenizer_file}: missing; restore it or make the model again")
    if hash_file(tokenizer_file) != config.get("tokenizer_sha256"):
        raise InputError(
            f"{tokenizer_file}: not the tokenizer this model was trained with (its SHA-256 is not that in {CONFIG}); "
            "restore it or make the model again"
        )
    tokenizer = Tokenizer.load(tokenizer_file)
    if tokenizer.vocab_size > config["architecture"].vocab_size:
        known = config["architecture"].vocab_size
        raise InputError(
            f"{tokenizer_file}: {tokenizer.vocab_size} tokens, but the model knows {known}; make the model again"
        )
    methods = tuple(str(entry.get("method", "unknown")) for entry in config["compression"])
    fingerprint = (content_hash(directory) or "")[:12]
    if adapter:
        fingerprint = (content_hash(adapter) or "")[:12]
        return LoadedModel(
            load_with_adapter(adapter), tokenizer, _name(adapter.resolve()), adapter, methods, fingerprint
        )
    return LoadedModel(load(directory), tokenizer, _name(directory.resolve()), directory, methods, fingerprint)


def _name(directory: Path) -> str:
    """laptop/model and laptop/compressed → laptop; laptop/train/checkpoints/step-N → laptop-step-N; else the folder's
    name."""
    if directory.name in ("model", "compressed"):
        return directory.parent.name or directory.name
    if directory.parent.name == "checkpoints" and directory.parent.parent.name == "train":
        return f"{directory.parent.parent.parent.name}-{directory.name}"
    return directory.name
