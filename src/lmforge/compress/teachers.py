"""One teacher or several: the models whose probabilities a student learns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmforge.compress.method import CalibrationBatch, Context
from lmforge.errors import InputError
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT
from lmforge.record import hash_json
from lmforge.tokens.bpe import Tokenizer


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Models on one device; with several, what they say is the mean of their probabilities (Hinton et al. 2015)."""

    models: tuple[GPT, ...]

    @classmethod
    def of(cls, context: Context, others: Sequence[Path], device: torch.device) -> Teacher:
        """The context's teacher, and the models saved in `others`.

        Raises:
            InputError: one has another vocabulary than the context's teacher, or is no model.
        """
        models = [context.teacher]
        for path in others:
            loaded = load_any(path)
            same_vocabulary(context, path, loaded)
            models.append(loaded.model)
        return cls(tuple((copy.deepcopy(model) if device.type != "cpu" else model).to(device) for model in models))

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        model = self.models[0]
        return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))

    @torch.no_grad()
    def hidden(self, row: CalibrationBatch) -> list[Tensor]:
        """Each model's last layer where predictions count: (N,D)."""
        inputs, counts = row.inputs.to(self.device), row.counts.to(self.device)
        documents = None if row.documents is None else row.documents.to(self.device)
        return [model.hidden(inputs, documents=documents)[counts] for model in self.models]

    @torch.no_grad()
    def log_probabilities(self, hidden: Sequence[Tensor], temperature: float) -> Tensor:
        """ln of the mean of the models' probabilities at a temperature: (N,V)."""
        each = []
        for model, last in zip(self.models, hidden, strict=True):
            assert model.head is not None
            each.append(torch.log_softmax(model.head(last).float() / temperature, -1))
        if len(each) == 1:
            return each[0]
        return torch.stack(each).logsumexp(0) - torch.log(torch.tensor(float(len(each))))

    def digest(self) -> str:
        """Of all its models: what a cache of their answers is known by."""
        return hash_json([digest(model) for model in self.models])


def digest(model: GPT) -> str:
    """What a model's shape and weights are known by: two sums of each tensor."""
    sums = [
        (name, [float(part) for part in (tensor.double().sum(), tensor.double().square().sum())])
        for name, tensor in model.state_dict().items()
    ]
    return hash_json([model.config.to_json(), sums])


def same_vocabulary(context: Context, path: Path, loaded: LoadedModel) -> None:
    """Refuse a teacher that numbers tokens in another way.

    Raises:
        InputError: its vocabulary has another size, or other tokens.
    """
    own, vocab_size = context.teacher.config.vocab_size, loaded.config.vocab_size
    cause = ""
    if vocab_size != own:
        cause = f"a teacher with {vocab_size} tokens cannot teach a student with {own}"
    elif context.tokenizer is not None:
        texts = [each.standard_json() for each in (Tokenizer.load(context.tokenizer), loaded.tokenizer)]
        if texts[0] != texts[1]:
            cause = f"its {vocab_size} tokens are not those of the student's tokenizer"
    if cause:
        raise InputError(f"teachers: {path}: {cause}; give one that was trained with the same tokenizer.json")
