"""Conversations put to a model: how likely an answer is, and what it would write.

question ─render─▶ tokens … answer, its end ─▶ Σ −ln p of what training counts
question ─render─▶ tokens ─greedy─▶ answer
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from lmforge.evaluate.task import Context, device_of
from lmforge.evaluate.windows import BATCH_TOKENS
from lmforge.generate.decode import Sampling, decode
from lmforge.generate.score import token_nats
from lmforge.progress import Bar
from lmforge.tokens.chat import STOP, Messages, Rendered, render_chat, stop_tokens

NEW_TOKENS = 64  # that an answer may have
BATCH_ROWS = 16  # answers written side by side


def targets_of(conversation: Rendered, end_of_text: int) -> list[int]:
    """The token to predict after each of a conversation's, −1 where it does not count: what training asks of the
    document, whose end of text counts as its last token does. An answer is so scored with its end, and one that begins
    another is not the likelier for it."""
    after = [*conversation.tokens[1:], end_of_text]
    counts = [*conversation.counted[1:], conversation.counted[-1]]
    return [token if counted else -1 for token, counted in zip(after, counts, strict=True)]


def nats_of(context: Context, conversations: Sequence[Rendered], title: str) -> list[float]:
    """−ln p of what counts in each conversation after its first token, its end included, in nats; infinite where it is
    longer than the context."""
    nats = [math.inf] * len(conversations)
    device, length = device_of(context.network), context.network.config.context
    order = sorted(
        (n for n, each in enumerate(conversations) if len(each.tokens) <= length),
        key=lambda n: len(conversations[n].tokens),
    )
    with Bar("evaluate", len(order), title) as bar:
        for group in _groups(order, [len(each.tokens) for each in conversations], BATCH_TOKENS[device.type]):
            width = len(conversations[group[-1]].tokens)
            tokens, targets = torch.zeros(len(group), width, dtype=torch.long), torch.full((len(group), width), -1)
            for row, number in enumerate(group):
                ids = torch.tensor(conversations[number].tokens)
                tokens[row, : len(ids)] = ids
                wanted = targets_of(conversations[number], context.tokenizer.end_of_text)
                targets[row, : len(ids)] = torch.tensor(wanted)
            sums = token_nats(context.network, tokens.to(device), targets.to(device)).double().sum(1).tolist()
            for number, value in zip(group, sums, strict=True):
                nats[number] = value
            bar.step(len(group))
    return nats


def _groups(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """`order` (by length, ascending) in groups that padded to their longest hold at most about `most` tokens."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[number] > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def written(context: Context, questions: Sequence[Messages]) -> list[str | None]:
    """The model's greedy answers, without blanks around them; None where question and answer would not fit into the
    context."""
    tokenizer, length = context.tokenizer, context.network.config.context
    new = min(NEW_TOKENS, length // 4)
    prompts = [render_chat(each, tokenizer) for each in questions]
    sampling = Sampling(max_tokens=new, temperature=0.0, stop_ids=stop_tokens(tokenizer))
    texts: list[str | None] = [None] * len(questions)
    order = sorted(
        (number for number, prompt in enumerate(prompts) if len(prompt) + new <= length),
        key=lambda number: len(prompts[number]),
    )
    with Bar("evaluate", len(order), "answers") as bar:
        for start in range(0, len(order), BATCH_ROWS):
            group = order[start : start + BATCH_ROWS]
            tokens: list[list[int]] = [[] for _ in group]
            for step in decode(context.network, [prompts[number] for number in group], [sampling] * len(group)):
                for drawn in step:
                    if drawn.finish != "stop":
                        tokens[drawn.row].append(drawn.token)
            for number, each in zip(group, tokens, strict=True):
                text = tokenizer.decode(each)
                texts[number] = text[
                    : min((at for stop in STOP if (at := text.find(stop)) >= 0), default=len(text))
                ].strip()
            bar.step(len(group))
    return texts
