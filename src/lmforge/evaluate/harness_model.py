"""Our network as lm-evaluation-harness sees a model (`lm_eval.api.model.LM`): texts in, log-likelihoods and texts out.

    loglikelihood          the options of a document are one item: its beginning is read once (`continuations`)
    loglikelihood_rolling  windows as the harness cuts them, each token scored once
    generate_until         one decoding loop for all; draws have the seed 0

Imported only where `lm_eval` is installed (`engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.joins import join
from lmforge.generate.continuations import Continuations
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.chat import stop_tokens

GENERATED = 256  # tokens, where a task states no limit: the harness's own
BATCH_ROWS = 16  # written side by side; no answer depends on it


class HarnessModel(LM):  # type: ignore[misc]
    """One network for `lm_eval.evaluate`; answers come from `log` where they are there, and go there as items end."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, log: ItemLog, begins: bool, continuations: Continuations | None = None
    ) -> None:
        super().__init__()
        self.model, self.forge_tokenizer, self.log, self.begins = model, tokenizer, log, begins
        self.continuations = continuations or Continuations(model)
        self.rules: dict[tuple[str, str], str] = {}  # of each (context, continuation)
        self.cut: dict[tuple[str, str], int] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether it is the greedy one) of each request."""
        groups: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault((request.task_name, request.doc_id), []).append(place)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        by_task: dict[str, list[list[int]]] = {}
        for (task, _), places in groups.items():
            by_task.setdefault(str(task), []).append(places)
        with Bar("evaluate", len(groups), "items") as bar:
            for items in by_task.values():
                self._score(requests, items, results, bar)
        return results

    def _score(
        self, requests: Sequence[Any], items: list[list[int]], results: list[tuple[float, bool]], bar: Bar
    ) -> None:
        """One task's items; the stem is of all of them, those answered before among them."""
        pairs = [[requests[place].args for place in places] for places in items]
        flat = join(self.forge_tokenizer, [pair for each in pairs for pair in each], self.begins)
        joined, at = [], 0
        for each in pairs:
            joined.append(flat[at : at + len(each)])
            at += len(each)
        options = [[(one.before, one.after) for one in each] for each in joined]
        for each, rules in zip(pairs, joined, strict=True):
            self.rules.update({tuple(pair): one.rule for pair, one in zip(each, rules, strict=True)})
        asked = [[[before, after] for before, after in each] for each in options]
        open_items = []
        for number, question in enumerate(asked):
            known = self.log.get(question)
            if known is None:
                open_items.append(number)
            else:
                self._enter(items[number], pairs[number], known, results)
                bar.step(1)
        stem = self.continuations.common(options)
        for number, scores in self.continuations.score([options[n] for n in open_items], stem):
            place = open_items[number]
            answer = [[one.log_p, one.greedy, one.cut] for one in scores]
            self.log.add(asked[place], answer)
            self._enter(items[place], pairs[place], answer, results)
            bar.step(1)

    def _enter(self, places: list[int], pairs: Sequence[Any], answer: Any, results: list[tuple[float, bool]]) -> None:
        for place, pair, (log_p, greedy, cut) in zip(places, pairs, answer, strict=True):
            results[place] = (float(log_p), bool(greedy))
            if cut:
                self.cut[tuple(pair)] = int(cut)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of each whole text, in windows of a context that do not overlap."""
        length, mark = self.model.config.context, self.forge_tokenizer.begin
        items = []
        for request in requests:
            tokens = self.forge_tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, mark, length, 1)
            items.append([make_disjoint_window(window) for window in windows])
        flat = [[(list(before), list(after))] for item in items for before, after in item]
        scores = {}
        for number, (option,) in enumerate(flat):
            if (known := self.log.get(option)) is not None:
                scores[number] = float(known)
        left = [number for number in range(len(flat)) if number not in scores]
        for number, (one,) in self.continuations.score([flat[n] for n in left], []):
            scores[left[number]] = one.log_p
            self.log.add(flat[left[number]][0], one.log_p)
        results, at = [], 0
        for item in items:
            results.append(sum(scores[number] for number in range(at, at + len(item))))
            at += len(item)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the task's stops."""
        texts: list[str | None] = [self.log.get([*map(str, request.args)]) for request in requests]
        order = [place for place, text in enumerate(texts) if text is None]
        order.sort(key=lambda place: (len(requests[place].args[0]), place))
        with Bar("evaluate", len(order), "answers") as bar:
            for start in range(0, len(order), BATCH_ROWS):
                some = order[start : start + BATCH_ROWS]
                for place, text in zip(some, self._written([requests[place].args for place in some]), strict=True):
                    texts[place] = text
                    self.log.add([*map(str, requests[place].args)], text)
                bar.step(len(some))
        return [text or "" for text in texts]

    def _written(self, asked: Sequence[Any]) -> list[str]:
        length, mark = self.model.config.context, [self.forge_tokenizer.begin] if self.begins else []
        prompts, samplings, stops = [], [], []
        for context, settings in asked:
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            new = min(int(settings.get("max_gen_toks", GENERATED)), length // 2)
            tokens = [*mark, *self.forge_tokenizer.encode(context)] or [self.forge_tokenizer.begin]
            prompts.append(tokens[-(length - new) :])
            warm = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            stop_ids = stop_tokens(self.forge_tokenizer)
            samplings.append(Sampling(max_tokens=new, temperature=warm, stop_ids=stop_ids, seed=0))
        tokens_of: list[list[int]] = [[] for _ in asked]
        texts = [""] * len(asked)
        for step in decode(self.model, prompts, samplings, batch_invariant=True):
            for drawn in step:
                if drawn.finish != "stop":
                    tokens_of[drawn.row].append(drawn.token)
                    texts[drawn.row] = self.forge_tokenizer.decode(tokens_of[drawn.row])
                    if any(stop in texts[drawn.row] for stop in stops[drawn.row]):
                        samplings[drawn.row] = Sampling(max_tokens=0, temperature=0.0, stop_ids=stop_ids)
        return [_until(text, each) for text, each in zip(texts, stops, strict=True)]


def _until(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]
