"""A language model fine-tuned to judge texts: which label, or how much.

    text ─▶ network ─▶ hidden state of the last token ─┬─ head:  a new matrix ─▶ a number a label (one, for a degree)
                                                       └─ words: the output embeddings of the labels' words

Every weight is trained, or low-rank adapters (`train.adapters`) with the head. Matrices that stay frozen are held in
bfloat16 while they train, where that is faster; the model that is left has its own again, with the adapters added.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.allocator import freed_memory_kept
from lmforge.errors import InputError, LmforgeError
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.recipe import Lora
from lmforge.train.adapters import Adapted, adapt, adapted_layers, hold, merged

BATCH_TOKENS = 4096  # of a pass that only reads
WARMUP = 0.06  # share of the steps in which the rate rises
SORTED = 32  # batches that are drawn together, so that rows of like length share one


@dataclasses.dataclass(frozen=True)
class Judged:
    """A text's tokens, and its label: a number from 0, or a degree."""

    tokens: list[int]
    label: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """How to train. `lora` None: every weight. `words` (one token a label) None: a new head."""

    outputs: int
    degree: bool = False
    words: tuple[int, ...] | None = None
    lora: Lora | None = None
    epochs: float = 3.0
    batch: int = 32
    peak_lr: float | None = None
    seed: int = 1
    precision: str = "auto"
    most_seconds: float | None = None


class HasTokens(Protocol):
    """An example of whatever kind."""

    @property
    def tokens(self) -> list[int]:
        """What the network reads."""


E = TypeVar("E", bound=HasTokens)


class Reader(nn.Module):
    """A network and, in subclasses, what reads its hidden states."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model


class Classifier(Reader):
    """A network and what reads its last hidden state."""

    def __init__(self, model: GPT, fit: Fit) -> None:
        super().__init__(model)
        self.words = fit.words
        self.head: nn.Linear | None = None
        if fit.words is None:
            self.head = nn.Linear(model.config.d_model, fit.outputs)
            nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(fit.seed))
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B,T), padded on the right; lengths (B,) → (B, outputs), fp32."""
        hidden = self.model.hidden(tokens)
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1].float()
        if self.head is not None:
            result: Tensor = self.head(last)
            return result
        assert self.model.head is not None
        return F.linear(last, self.model.head.weight[list(self.words or ())].float())

    def judged(self, examples: Sequence[Judged], degree: bool) -> list[list[float]]:
        """Each example's numbers: ln p of each label, or the degree."""
        results: list[list[float]] = [[] for _ in examples]
        order = sorted(range(len(examples)), key=lambda number: len(examples[number].tokens))
        with torch.inference_mode():
            for group in groups_of(order, [len(each.tokens) for each in examples]):
                tokens, lengths = padded([examples[number].tokens for number in group])
                outputs = self(tokens, lengths)
                outputs = outputs if degree and self.head is not None else outputs.log_softmax(-1)
                for number, row in zip(group, outputs.tolist(), strict=True):
                    results[number] = row
        return results


def fit_classifier(model: GPT, examples: Sequence[Judged], fit: Fit) -> tuple[Classifier, dict[str, float]]:
    """Train, in place; gives the classifier and `fit_reader`'s figures, with its errors."""
    classifier = Classifier(model, fit)
    return classifier, fit_reader(classifier, examples, fit, lambda batch: _loss(classifier, batch, fit))


@freed_memory_kept()
def fit_reader(
    reader: Reader, examples: Sequence[E], fit: Fit, loss_of: Callable[[Sequence[E]], Tensor]
) -> dict[str, float]:
    """Train what reads a network, and the network or its adapters, in place; the network is an ordinary one again.
    Gives figures: steps, examples, seconds, loss of the last tenth, trained parameters.

    Raises:
        InputError: no examples, or one longer than the context.
        LmforgeError: the loss is no longer a number.
    """
    model = reader.model
    longest = max((len(each.tokens) for each in examples), default=0)
    if not 0 < longest <= model.config.context:
        raise InputError(
            f"{len(examples)} examples, the longest of {longest} tokens: the model reads {model.config.context}"
        )
    if fit.lora is not None:
        adapt(model, fit.lora, fit.seed)
    device = next(reader.parameters()).device
    reduced = _reduce(model) if in_bfloat16(fit, device) and fit.lora is not None else {}
    trained = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    rate = fit.peak_lr or (5e-4 if fit.lora is not None else 3e-5)
    optimizer = torch.optim.AdamW(_rates(reader, rate), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    steps = max(1, math.ceil(fit.epochs * len(examples) / fit.batch))
    losses, started, seen = [], time.monotonic(), 0
    reader.train()
    with Bar("train", steps, "steps") as bar:
        for step, batch in zip(range(steps), _batches(examples, fit), strict=False):
            share = step / steps
            if fit.most_seconds is not None and step:
                share = max(share, (time.monotonic() - started) / fit.most_seconds)
                if share >= 1:
                    break
            factor = min(1.0, (step + 1) / max(1.0, WARMUP * steps)) * (1 - share)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(fit, device)):
                tensor = loss_of(batch)
            tensor.backward()
            loss = float(tensor.detach())
            if not math.isfinite(loss):
                raise LmforgeError(f"step {step}: the loss is {loss}; lower the rate")
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
            seen += len(batch)
            bar.step(1, f"loss {np.mean(losses[-20:]):.3f}")
    reader.eval()
    figures = {
        "steps": len(losses), "examples": seen, "seconds": round(time.monotonic() - started, 1),
        "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
    }  # fmt: skip
    _restore(model, reduced)
    return figures


def _rates(reader: Reader, rate: float) -> list[dict[str, object]]:
    """What is new learns faster than what is there."""
    there = {id(each) for each in reader.model.parameters()}
    own = [each for each in reader.parameters() if id(each) not in there]
    rest = [each for each in reader.model.parameters() if each.requires_grad]
    groups = [{"params": rest, "peak": rate}, {"params": own, "peak": max(rate, 1e-3)}]
    return [group for group in groups if group["params"]]


def _loss(classifier: Classifier, batch: Sequence[Judged], fit: Fit) -> Tensor:
    tokens, lengths = padded([each.tokens for each in batch])
    outputs = classifier(tokens, lengths).float()
    labels = torch.tensor([each.label for each in batch])
    if not fit.degree:
        return F.cross_entropy(outputs, labels.long())
    if fit.words is None:
        return F.mse_loss(outputs[:, 0], labels.float())
    # the two words around a degree share it
    low = labels.floor().clamp(max=fit.outputs - 2)
    target = torch.zeros_like(outputs)
    target.scatter_(1, low.long()[:, None], (1 - (labels - low)).float()[:, None])
    target.scatter_(1, low.long()[:, None] + 1, (labels - low).float()[:, None])
    return F.cross_entropy(outputs, target)


def in_bfloat16(fit: Fit, device: torch.device) -> bool:
    """Whether products are made in bfloat16: where the processor has instructions for it."""
    if fit.precision == "auto" and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if fit.precision == "auto":
        return torch.cpu._is_avx512_bf16_supported()
    return fit.precision == "bf16"


def _reduce(model: GPT) -> dict[str, Tensor]:
    """Hold the blocks' frozen matrices in bfloat16; gives what they were."""
    kept = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and not module.weight.requires_grad:
            kept[name] = module.weight.data
            module.weight.data = module.weight.data.bfloat16()
    return kept


@torch.no_grad()
def _restore(model: GPT, kept: dict[str, Tensor]) -> None:
    """Frozen matrices as they were, adapters added to them, and ordinary layers in the place of adapted ones."""
    for name, weight in kept.items():
        model.get_submodule(name).weight.data = weight
    if not adapted_layers(model):
        return
    weights = merged(model)
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, _plain(layer))
    hold(model, weights)


def _plain(layer: Adapted) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain


def _batches(examples: Sequence[E], fit: Fit) -> Iterator[list[E]]:
    """Every example once an epoch, in a new order, rows of like length together."""
    rng = np.random.default_rng(fit.seed)
    while True:
        order = rng.permutation(len(examples)).tolist()
        for start in range(0, len(order), SORTED * fit.batch):
            some = sorted(order[start : start + SORTED * fit.batch], key=lambda number: len(examples[number].tokens))
            batches = [some[at : at + fit.batch] for at in range(0, len(some), fit.batch)]
            for place in rng.permutation(len(batches)).tolist():
                yield [examples[number] for number in batches[place]]


def groups_of(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows, in order (by rising length), as many together as a pass that only reads takes."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[number] > BATCH_TOKENS:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(tokens (B,T), 0 after each row's end; lengths (B,))."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens, lengths
