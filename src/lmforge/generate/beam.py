"""Beam search: the likeliest texts of several kept side by side, batched over prompts (Graves 2012; length penalty: Wu
et al. 2016, eq. 14).

    prompts ─▶ Continuation ─┬─▶ scores of every next token ─▶ the best `width` of each prompt ─┐
                             └────────────────── tokens, and the row each goes on from ◀────────┘

It moves rows through the same `Continuation` as `decode`; what it returns is final, since a beam may change its mind
about its beginning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from lmforge.generate.continuation import Continuation
from lmforge.model.gpt import GPT


@dataclasses.dataclass
class Hypothesis:
    """A text as far as it goes: its tokens, and the sum of their log-probabilities (nats; the end included where it has
    ended)."""

    tokens: list[int]
    logprob: float

    def score(self, alpha: float) -> float:
        """log p over ((5 + length) / 6)^alpha, the end counted."""
        return self.logprob / math.pow((6 + len(self.tokens)) / 6, alpha)


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    stop_ids: Sequence[int],
    width: int = 4,
    alpha: float = 0.6,
) -> list[Hypothesis]:
    """The best continuation found of each prompt, at most `limits` tokens long, without its end token.

    A prompt is done when `width` texts have ended, at its limit, or where the network gives no number for its next
    token, which ends no other. Prompts and limits together must fit the model's
    context.
    """
    live = [[Hypothesis([], 0.0)] for _ in prompts]
    ended: list[list[Hypothesis]] = [[] for _ in prompts]
    going = [prompt for prompt, limit in enumerate(limits) if limit > 0]
    rows = Continuation(model, [prompts[prompt] for prompt in going], model.config.context) if going else None
    while going:
        assert rows is not None
        tokens: list[int] = []
        parents: list[int] = []
        still = []
        chances = torch.log_softmax(rows.logits.float(), -1).cpu()
        first = 0
        for prompt in going:
            held = live[prompt]
            kept, new = _step(chances[first : first + len(held)], held, stop_ids, width)
            ended[prompt] += new
            live[prompt] = [hypothesis for hypothesis, _ in kept] or held
            if kept and len(ended[prompt]) < width and len(live[prompt][0].tokens) < limits[prompt]:
                still.append(prompt)
                tokens += [hypothesis.tokens[-1] for hypothesis, _ in kept]
                parents += [first + parent for _, parent in kept]
            first += len(held)
        going = still
        if going:
            rows.push(tokens, parents)
    return [max(ended[prompt] or live[prompt], key=lambda each: each.score(alpha)) for prompt in range(len(prompts))]


def _step(
    chances: torch.Tensor, held: list[Hypothesis], stop_ids: Sequence[int], width: int
) -> tuple[list[tuple[Hypothesis, int]], list[Hypothesis]]:
    """From log-probabilities (rows,V) of the next tokens: the `width` best that go on, each with its row, and those
    among the best that end."""
    chances = chances.nan_to_num(float("-inf"))
    sums = chances + torch.tensor([each.logprob for each in held])[:, None]
    count = min(width * (1 + len(stop_ids)), sums.numel())
    values, places = sums.flatten().topk(count)
    kept: list[tuple[Hypothesis, int]] = []
    ended: list[Hypothesis] = []
    for rank, (total, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        parent, token = divmod(place, chances.shape[1])
        if token in stop_ids:
            if rank < width and math.isfinite(total):
                ended.append(Hypothesis(held[parent].tokens, total))
        elif len(kept) < width and math.isfinite(total):
            kept.append((Hypothesis([*held[parent].tokens, token], total), parent))
    return kept, ended
