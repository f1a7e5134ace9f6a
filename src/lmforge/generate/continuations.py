"""How likely given continuations are, with what they share read once.

    item: [(before, after), …] ─▶ a tree of tokens ─┐
    item: …                    ─▶ a tree            ├─▶ one row of up to 512 tokens ─▶ Σ ln p(after | before), greedy or
    stem: what all items begin with, read once ─────┘                                   not, of each

An item's numbers depend on the item and its stem alone, to the last bit: on no other item, no order, no size of batch.
Attention runs on each tree by itself; what trees share, the products with the weights, gives a row of tokens the same
bits whatever rows stand beside it, which is tried out on the network at hand (`Continuations.together`). Where it does
not, as with experts, each item goes through the network by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lmforge.generate.continuation import device_of
from lmforge.model.branches import Branches, LayerKeys, Tree
from lmforge.model.gpt import GPT

PASS_TOKENS = {"cpu": 512, "cuda": 16_384}  # of one row
HEAD_ROWS = {"cpu": 256, "cuda": 2048}  # logits made at a time
MULTIPLE = 16  # rows of a product: kernels for fewer than 4 add in another order
WINDOW = 256  # items that are looked at to fill a row
LEAST_STEM = 32  # tokens that all items must share for a pass of their own
Option = tuple[Sequence[int], Sequence[int]]  # tokens before, tokens to score


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """ln p of a continuation, in nats (0 for one without tokens); whether greedy decoding would give it; how many of
    the tokens were left out at the beginning, because the context holds no more."""

    log_p: float
    greedy: bool
    cut: int = 0


@dataclasses.dataclass
class _Item:
    """An item made ready: its tree, and by option the nodes that predict and what they are to predict."""

    number: int
    tree: Tree
    places: list[list[int]]
    targets: list[list[int]]
    cuts: list[int]
    stemmed: bool


class Continuations:
    """Scores items with one network."""

    def __init__(self, model: GPT, pass_tokens: int | None = None) -> None:
        """`pass_tokens`: of one row (default: what suits the device); no figure depends on it.

        Raises:
            AssertionError: a stage without head.
        """
        assert model.head is not None
        self.model, self.device = model, device_of(model)
        self.pass_tokens = pass_tokens or PASS_TOKENS[self.device.type]
        config = model.config
        self.shares = not config.ngram_rows  # a token's n-grams are looked up in the row as it lies
        self.stems = self.shares and all(config.kind_of(layer) == "full" for layer in range(config.layers))
        self.together = not config.has_experts and self._same_in_company()

    def score(
        self, items: Sequence[Sequence[Option]], stem: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """(number of the item, one likelihood an option), as they end: not in order. `stem`: what all items begin with
        (default: `common`, of these items)."""
        stem = self.common(items) if stem is None else stem
        keys = self._stem_keys(stem) if stem else None
        with torch.inference_mode():
            for start in range(0, len(items), WINDOW):
                window = range(start, min(start + WINDOW, len(items)))
                ready = [self._ready(number, items[number], stem) for number in window]
                for stemmed in (True, False):
                    for group in self._groups([each for each in ready if each.stemmed is stemmed]):
                        yield from self._scored(group, keys if stemmed else None)

    def common(self, items: Iterable[Sequence[Option]]) -> list[int]:
        """What the tokens before every option begin with, short of the last of them; empty where that is little."""
        shared: list[int] | None = None
        for options in items if self.stems else ():
            for before, _ in options:
                whole = list(before[:-1])
                if shared is None:
                    shared = whole
                    continue
                limit = min(len(shared), len(whole))
                shared = shared[: next((n for n in range(limit) if shared[n] != whole[n]), limit)]
                if len(shared) < LEAST_STEM:
                    return []
        return shared if shared and len(shared) >= LEAST_STEM else []

    def _stem_keys(self, stem: Sequence[int]) -> LayerKeys:
        with torch.inference_mode():
            branches = self._pass([Tree([stem])], None, keep=True)[1]
        return branches.kept

    def _ready(self, number: int, options: Sequence[Option], stem: Sequence[int]) -> _Item:
        context = self.model.config.context
        rows = [[*before, *after][:-1] if after else [] for before, after in options]
        cuts = [max(0, len(row) - context) for row in rows]
        stemmed = bool(stem) and not any(cuts)
        skip = len(stem) if stemmed else 0
        tree = Tree([row[cut + skip :] for row, cut in zip(rows, cuts, strict=True)], shared=self.shares)
        places = [path[max(0, len(path) - len(after)) :] for path, (_, after) in zip(tree.paths, options, strict=True)]
        # of a continuation longer than the context its last tokens are scored
        targets = [list(after[len(after) - len(place) :]) for place, (_, after) in zip(places, options, strict=True)]
        assert all(before for before, after in options if after), "nothing stands before a continuation"
        return _Item(number, tree, places, targets, cuts, stemmed)

    def _groups(self, items: list[_Item]) -> Iterator[list[_Item]]:
        """Items that share a row: the largest first, each where it fits first."""
        if not self.together:
            yield from ([item] for item in items)
            return
        rows: list[tuple[int, list[_Item]]] = []
        for item in sorted(items, key=lambda each: (-len(each.tree), each.number)):
            for place, (used, row) in enumerate(rows):
                if used + len(item.tree) <= self.pass_tokens:
                    row.append(item)
                    rows[place] = (used + len(item.tree), row)
                    break
            else:
                rows.append((len(item.tree), [item]))
        yield from (row for _, row in rows)

    def _pass(self, trees: Sequence[Tree], stem: LayerKeys | None, keep: bool = False) -> tuple[Tensor, Branches]:
        """Trees through the network: (hidden states (N,D), how they lay)."""
        tokens = [token for tree in trees for token in tree.tokens]
        length = max(MULTIPLE, math.ceil(len(tokens) / MULTIPLE) * MULTIPLE)
        branches = Branches(trees, length, self.device, stem, keep)
        ids = torch.tensor([tokens + [0] * (length - len(tokens))], device=self.device)
        return self.model.hidden(ids, documents=branches)[0], branches

    def _scored(self, items: Sequence[_Item], stem: LayerKeys | None) -> Iterator[tuple[int, list[Likelihood]]]:
        offsets, start = [], 0
        for item in items:
            offsets.append(start)
            start += len(item.tree)
        pairs = [
            (offset + node, target)
            for item, offset in zip(items, offsets, strict=True)
            for nodes, targets in zip(item.places, item.targets, strict=True)
            for node, target in zip(nodes, targets, strict=True)
        ]
        log_p, best = self._log_p(self._pass([item.tree for item in items], stem)[0], pairs) if pairs else ([], [])
        at = 0
        for item in items:
            result = []
            for targets, cut in zip(item.targets, item.cuts, strict=True):
                end = at + len(targets)
                result.append(Likelihood(math.fsum(log_p[at:end]), best[at:end] == targets, cut))
                at = end
            yield item.number, result

    def _log_p(self, hidden: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[list[float], list[int]]:
        """ln p of each (node, target), and the likeliest token there; the logits of a node are made once."""
        assert self.model.head is not None
        nodes = sorted({node for node, _ in pairs})
        row_of = {node: row for row, node in enumerate(nodes)}
        by_row: dict[int, list[int]] = {}
        for number, (node, _) in enumerate(pairs):
            by_row.setdefault(row_of[node], []).append(number)
        log_p, best = [0.0] * len(pairs), [0] * len(pairs)
        size = HEAD_ROWS[self.device.type]
        for start in range(0, len(nodes), size):
            some = nodes[start : start + size]
            padded = some + [some[-1]] * (-len(some) % MULTIPLE)
            logs = self.model.head(hidden[torch.tensor(padded, device=hidden.device)]).float().log_softmax(-1)
            likeliest = logs.argmax(-1).tolist()
            wanted = [(row, number) for row in range(len(some)) for number in by_row[start + row]]
            rows = torch.tensor([row for row, _ in wanted], device=logs.device)
            targets = torch.tensor([pairs[number][1] for _, number in wanted], device=logs.device)
            for (row, number), value in zip(wanted, logs[rows, targets].tolist(), strict=True):
                log_p[number], best[number] = value, likeliest[row]
        return log_p, best

    def _same_in_company(self) -> bool:
        """Whether items alone, two, and many in a row get the same bits: tried on items of several sizes."""
        generator = torch.Generator().manual_seed(0)
        most = max(1, min(32, self.model.config.context - 4))
        sizes = [most, 1, 7, 2 * most // 3, 17]

        def drawn(size: int) -> list[int]:
            return torch.randint(self.model.config.vocab_size, (max(1, min(size, most)),), generator=generator).tolist()

        items = []
        for number, size in enumerate(sizes):
            before, afters = drawn(size), [drawn(1 + number % 3), drawn(2), drawn(1)]
            items.append(self._ready(number, [(before, after) for after in afters], ()))
        with torch.inference_mode():
            whole = dict(self._scored(items, None))
            some = [items[1:2], items[2:4], [items[4], items[0]]]
            return all(whole[number] == scores for group in some for number, scores in self._scored(group, None))
