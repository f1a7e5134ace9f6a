"""Our network behind the harness's interface: right numbers, the rule of each join, and a log to go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from lmforge.evaluate.harness_model import HarnessModel
from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.task import Context
from lmforge.generate.continuations import Continuations
from lmforge.model.gpt import GPT, GPTConfig
from tests.evaluate.conftest import VOCABULARY


def network() -> GPT:
    model = GPT(GPTConfig(VOCABULARY, 64, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64))
    model.initialise(3)
    return model.eval()


def requests_of(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(kind, {}, pair, number % 2, metadata=("task", number // 2, 1)) for number, pair in enumerate(arguments)
    ]


def test_log_likelihoods_rules_and_going_on(context_of: Callable[..., Context], tmp_path: Path) -> None:
    tokenizer, model = context_of(None).tokenizer, network()
    asked = requests_of("loglikelihood", ("The man", " went"), ("The man", ""), ("", "He said"), ("", "She said no"))
    with ItemLog(tmp_path, "k") as log:
        ours = HarnessModel(model, tokenizer, log, True)
        first = ours.loglikelihood(asked)
    assert first[1] == (0.0, True)
    assert first[0][0] < 0 > first[2][0]
    assert ours.rules == {
        ("The man", " went"): "together",
        ("The man", ""): "empty",
        ("", "He said"): "begin",
        ("", "She said no"): "begin",
    }
    with ItemLog(tmp_path, "k") as log:
        assert log.found == 2
        again = HarnessModel(model, tokenizer, log, True, ours.continuations)
        again.continuations = Continuations(model)
        again.continuations._pass = None  # type: ignore[assignment,method-assign]  # nothing is computed again
        assert again.loglikelihood(asked) == first
    turned = HarnessModel(model, tokenizer, ItemLog(None, ""), True, Continuations(model, 1))
    assert turned.loglikelihood([asked[n] for n in (3, 1, 0, 2)]) == [first[n] for n in (3, 1, 0, 2)]


def test_rolling_and_writing(context_of: Callable[..., Context]) -> None:
    tokenizer = context_of(None).tokenizer
    ours = HarnessModel(network(), tokenizer, ItemLog(None, ""), True)
    text = "The old man went home. " * 12
    (whole,) = ours.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)))
    assert len(tokenizer.encode(text)) > 64  # several windows
    assert -10 * len(tokenizer.encode(text)) < whole < 0
    settings = {"until": ["\n"], "max_gen_toks": 6}
    asked = requests_of("generate_until", ("The", settings), ("A longer beginning", settings), ("The", settings))
    texts = ours.generate_until(asked)
    assert texts[0] == texts[2]
    fresh = HarnessModel(network(), tokenizer, ItemLog(None, ""), True)
    assert fresh.generate_until(asked[:1]) == texts[:1]
    stop = texts[0][1:2]
    if stop:
        cut = fresh.generate_until(requests_of("generate_until", ("The", {"until": [stop], "max_gen_toks": 6})))
        assert stop not in cut[0]
