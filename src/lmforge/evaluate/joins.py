"""Two texts → the tokens before, the tokens to score: by which rule is said of each pair.

    context + continuation ─tokenised together─▶ tokens ─cut where the continuation begins─▶ before | after

Rules, in the order they are tried:

    empty      the continuation has no text: nothing is scored, ln p is 0
    begin      no context: the mark that begins a document stands before the continuation
    together   the context's own tokens begin the tokens of both: the cut is there
    across     a token spans the join: it is scored, with all after it, given the tokens before it

Blanks at the context's end belong to the continuation, as in lm-evaluation-harness. With `begins`, the mark that begins
a document stands before every context, once; a mark's name inside a text is text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmforge.tokens.bpe import Tokenizer


@dataclasses.dataclass(frozen=True)
class Joined:
    """The tokens before, those to score, and the rule."""

    before: list[int]
    after: list[int]
    rule: str


def puts_begin(tokenizer: Tokenizer) -> bool:
    """Whether texts begin with a mark under this tokenizer: ours always put one, those of others where they say so."""
    marks = tokenizer.special_tokens
    return tokenizer.library is None or (marks.begin == marks.bos and marks.bos != marks.end_of_text)


def join(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], begins: bool) -> list[Joined]:
    """Each (context, continuation) as tokens."""
    moved = [_moved(*pair) for pair in pairs]
    contexts = list(dict.fromkeys(context for context, _ in moved))
    known = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    mark = [tokenizer.begin]
    return [
        _joined(tokenizer, context, continuation, known[context], whole, mark, begins)
        for (context, continuation), whole in zip(moved, wholes, strict=True)
    ]


def _moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if continuation else (context, "")


def _joined(
    tokenizer: Tokenizer,
    context: str,
    continuation: str,
    own: list[int],
    whole: list[int],
    mark: list[int],
    begins: bool,
) -> Joined:
    before = mark if begins else []
    if not continuation:
        return Joined([*before, *own] or mark, [], "empty")
    if not context:
        return Joined(mark, whole, "begin")
    if whole[: len(own)] == own and len(whole) > len(own):
        return Joined([*before, *own], whole[len(own) :], "together")
    tokens, spans = tokenizer.encode_spans(context + continuation)
    first = next(place for place, (_, end) in enumerate(spans.tolist()) if end > len(context))
    return Joined([*before, *tokens[:first]] or mark, tokens[first:], "across")
