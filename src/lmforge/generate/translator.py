"""A trained model as a translator: texts in one language → texts in another, in batches, through the one decoding loop.

    translate = Translator.load(Path("runs/translator"))
    translate(["A dog runs."], "en", "de")     →  ["Ein Hund rennt."]

The model is one that learned from `parallel` sources (see `lmforge.corpus.sources.pairs` for the form); it continues
the prompt up to a line end.
`HubTranslator` does the same with a pair of Hub models through transformers, where these are installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lmforge.corpus.sources.pairs import prompt_of
from lmforge.errors import InputError
from lmforge.formats.native import TOKENIZER, load_model
from lmforge.generate.beam import beam_search
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT
from lmforge.record import content_hash
from lmforge.tokens.bpe import Tokenizer

ROWS = 64  # sentences decoded together
MORE, TIMES = 16, 2.0  # a translation is at most so much longer than its text, in tokens


@dataclasses.dataclass(frozen=True)
class Translator:
    """`temperature` 0 takes the likeliest token each time, or with `beams` the likeliest text found. Above it tokens
    are drawn, `tries` times for each text, and the translation of the highest probability per token is taken; the draw
    depends on text and seed alone."""

    model: GPT
    tokenizer: Tokenizer
    temperature: float = 0.0
    tries: int = 1
    seed: int = 1
    beams: int = 1

    @classmethod
    def load(cls, run: Path, temperature: float = 0.0, tries: int = 1, seed: int = 1, beams: int = 1) -> Translator:
        """From a run, or from the folder of a model.

        Raises:
            InputError: no finished model there.
        """
        directory = model_directory(run)
        return cls(load_model(directory), Tokenizer.load(directory / TOKENIZER), temperature, tries, seed, beams)

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """The translations, in the order of the texts; "" for a text that with its translation would not fit the
        context, or for which the network gives no number."""
        prompts = [self.tokenizer.encode_document(prompt_of(text, source, target)) for text in texts]
        lengths = [int(TIMES * len(prompt)) + MORE for prompt in prompts]
        context = self.model.config.context
        fitting = [
            number
            for number, prompt in enumerate(prompts)
            if 1.8 * len(prompt) + 2 <= context and texts[number].strip()
        ]
        fitting.sort(key=lambda number: len(prompts[number]))  # rows of like length waste no padding
        translations = [""] * len(texts)
        for first in range(0, len(fitting), ROWS):
            rows = fitting[first : first + ROWS]
            limits = [min(lengths[number], context - len(prompts[number])) for number in rows]
            for number, text in zip(rows, self._best([prompts[number] for number in rows], limits), strict=True):
                translations[number] = text
        return translations

    def _best(self, prompts: list[list[int]], limits: list[int]) -> list[str]:
        if self.beams > 1 and not self.temperature:
            return [
                self._text(best.tokens) for best in beam_search(self.model, prompts, limits, self._stop(), self.beams)
            ]
        best = list(self._tried(prompts, limits, 0))
        for again in range(1, self.tries if self.temperature else 1):
            best = [max(one, other) for one, other in zip(best, self._tried(prompts, limits, again), strict=True)]
        return [text for _, text in best]

    def _tried(self, prompts: list[list[int]], limits: list[int], again: int) -> Iterator[tuple[float, str]]:
        """For each prompt (mean log-probability of a token, translation)."""
        samplings = [
            Sampling(
                max_tokens=limit,
                temperature=self.temperature,
                seed=_seed(prompt, self.seed, again),
                stop_ids=self._stop(),
            )
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        chances: list[list[float]] = [[] for _ in prompts]
        failed = set[int]()
        for step in decode(self.model, prompts, samplings, on_error=lambda row, _error: failed.add(row)):
            for drawn in step:
                chances[drawn.row].append(drawn.logprob)
                if drawn.finish != "stop":
                    tokens[drawn.row].append(drawn.token)
        for number, (row, chance) in enumerate(zip(tokens, chances, strict=True)):
            if number in failed:
                yield -math.inf, ""
            else:
                yield sum(chance) / max(1, len(chance)), self._text(row)

    def _stop(self) -> tuple[int, ...]:
        return (*self.tokenizer.special_tokens.stop, *self.tokenizer.encode("\n"))

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens).split("\n")[0].strip()


def _seed(prompt: Sequence[int], seed: int, again: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((list(prompt), seed, again)).encode()).digest()[:7], "big")


def model_directory(run: Path) -> Path:
    """The model's own folder, given it or its run.

    Raises:
        InputError: neither is there.
    """
    for directory in (run / "model", run):
        if (directory / TOKENIZER).is_file() and (directory / "model.safetensors").is_file():
            return directory
    raise InputError(
        f"{run}: no finished model here; train one from a 'parallel' source first, or correct corpus.synthesis' model"
    )


def fingerprint(run: Path) -> str:
    """Changes when the model does.

    Raises:
        InputError: no finished model there.
    """
    digest = content_hash(model_directory(run))
    if digest is None:
        raise InputError(f"{run}: its model is not complete (a file is missing or altered); train it to its end")
    return digest


@dataclasses.dataclass(frozen=True)
class HubTranslator:
    """Two sequence-to-sequence models (Marian, M2M, T5 …), one for each direction."""

    there: Callable[[Sequence[str]], list[str]]
    back: Callable[[Sequence[str]], list[str]]
    language: str

    @classmethod
    def load(cls, names: tuple[str, str], language: str, temperature: float = 0.0, seed: int = 1) -> HubTranslator:
        """By name or by folder; nothing is downloaded where HF_HUB_OFFLINE is set.

        Raises:
            InputError: transformers is not installed, or a model is not on this machine.
        """
        return cls(_hub(names[0], temperature, seed), _hub(names[1], temperature, seed), language)

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """The translations, in the order of the texts."""
        direction = self.there if source == self.language else self.back
        return [text for first in range(0, len(texts), ROWS) for text in direction(texts[first : first + ROWS])]


def _hub(name: str, temperature: float, seed: int) -> Callable[[Sequence[str]], list[str]]:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "corpus.synthesis: hub = […] needs transformers; install the extra: pip install 'lmforge[translate]', or "
            "give model = RUN instead"
        ) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise InputError(
            f"corpus.synthesis: hub model {name}: cannot be loaded ({first}); fetch it first, or give its folder"
        ) from error
    drawing: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"num_beams": 4}

    def translate(texts: Sequence[str]) -> list[str]:
        batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        torch.manual_seed(_seed(batch["input_ids"].flatten().tolist(), seed, 0))
        with torch.inference_mode():
            made = model.generate(**batch, max_new_tokens=int(TIMES * batch["input_ids"].shape[1]) + MORE, **drawing)
        return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]

    return translate
