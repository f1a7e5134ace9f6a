"""Known answers; groups add up; what also stands in training is told apart."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.evaluate.task import TASKS, Context
from lmforge.evaluate.tasks.language import by_position
from lmforge.evaluate.windows import TokenScores, score_documents
from tests.evaluate.conftest import CONTEXT, VOCABULARY, held_out_of, score_of, tiny_model
from tests.evaluate.test_windows import Ring


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary(context_of: Callable[..., Context]) -> None:
    context = context_of(tiny_model(seed=None))
    score = score_of("bits_per_byte", context)
    table = context.shards.documents
    tokens, size = int((table[:, 1] - 1).sum()), int(table[:, 2].sum())
    assert score.value == pytest.approx(math.log2(VOCABULARY) * tokens / size, rel=1e-6)
    assert score.extra["nats_per_token"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert (score.extra["tokens"], score.extra["bytes"], score.items) == (tokens, size, len(table))
    assert sum(len(document.text.encode()) for document in held_out_of(context).documents) == size
    assert score.low < score.value < score.high  # type: ignore[operator]


def test_groups_add_up_to_the_whole(context_of: Callable[..., Context]) -> None:
    score = score_of("bits_per_byte", context_of(tiny_model(4)))
    for part in ("by_genre", "by_source"):
        groups = score.extra[part].values()
        assert sum(group["documents"] for group in groups) == score.items
        assert sum(group["bits_per_byte"] * group["bytes"] for group in groups) == pytest.approx(
            score.value * score.extra["bytes"]
        )
    assert sum(row["bits"] for row in score.rows) / sum(row["bytes"] for row in score.rows) == pytest.approx(
        score.value
    )
    places = score.extra["by_position"]
    assert sum(place["tokens"] for place in places.values()) == score.extra["tokens"]
    mean = sum(place["mean_context"] * place["tokens"] for place in places.values()) / score.extra["tokens"]
    assert mean == pytest.approx(score.extra["mean_context"])
    assert CONTEXT / 2 < mean <= CONTEXT


def test_by_position_counts_bytes_of_the_tokens() -> None:
    scores = score_documents(tiny_model(seed=None), Ring(300), np.array([[0, 300]]), CONTEXT)
    places = by_position(scores, np.full(VOCABULARY, 2))
    assert list(places) == ["0–63", "64–255", "256–1023"]
    assert [place["tokens"] for place in places.values()] == [64, 192, 43]
    assert all(
        place["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY) / 2, rel=1e-6) for place in places.values()
    )
    assert places["0–63"]["mean_context"] < places["64–255"]["mean_context"]


def test_max_tokens_takes_whole_documents(context_of: Callable[..., Context]) -> None:
    everything, some = (
        score_of("bits_per_byte", context_of(tiny_model(4))),
        score_of("bits_per_byte", context_of(tiny_model(4), "evaluate.max_tokens=1500")),
    )
    assert 0 < some.extra["tokens"] <= 1500 < everything.extra["tokens"]
    of_all = {row["id"]: row["bits"] for row in everything.rows}
    for row in some.rows:
        assert row["bits"] == pytest.approx(of_all[row["id"]], rel=1e-5)
    assert some.comparison_key["data"] != everything.comparison_key["data"]


def with_spans(context: Context, corpus: Path, spans: dict[int, list[list[int]]]) -> None:
    """Give the context a copy of its corpus in which these test documents name spans that stand in training."""
    shutil.copytree(context.corpus_dir, corpus)
    (path,) = sorted((corpus / "documents").glob("test-*.jsonl.zst"))
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for number, leaked in spans.items():
        lines[number].setdefault("meta", {})["leaked"] = leaked
    path.write_bytes(zstandard.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    context.corpus_dir = corpus


@pytest.mark.parametrize("name", ["bits_per_byte", "kneser_ney"])
def test_what_stands_in_training_has_a_figure_of_its_own(
    context_of: Callable[..., Context], tmp_path: Path, name: str
) -> None:
    context = context_of(tiny_model(4))
    plain = score_of(name, context)
    assert plain.clean == {}
    texts = [document.text for document in held_out_of(context).documents]
    again = context_of(tiny_model(4))
    with_spans(again, tmp_path / "leaky", {0: [[0, len(texts[0])]], 1: [[10, 30], [25, 40]], 2: []})
    score = score_of(name, again)
    assert score.value == pytest.approx(plain.value)
    sizes = [len(text.encode()) for text in texts]
    lost = sizes[0] + len(texts[1][10:40].encode())
    assert score.clean["leaked_share"] == pytest.approx(lost / sum(sizes))
    rows = score.rows
    assert (rows[0]["clean_bits"], rows[0]["clean_bytes"]) == (pytest.approx(0, abs=1e-9), 0)
    assert 0 < rows[1]["clean_bits"] < rows[1]["bits"]
    assert rows[1]["clean_bytes"] == sizes[1] - len(texts[1][10:40].encode())
    assert rows[2]["clean_bits"] == pytest.approx(rows[2]["bits"])
    total = sum(row["clean_bits"] for row in rows) / sum(row["clean_bytes"] for row in rows)
    assert score.clean["clean_value"] == pytest.approx(total)
    assert score.clean["clean_low"] < score.clean["clean_value"] < score.clean["clean_high"]
    assert "on unleaked bytes" in TASKS[name].headline({"value": score.value, **score.clean})
    assert TASKS[name].beside(score.clean)["on unleaked bytes"] == score.clean["clean_value"]


def test_everything_leaked_leaves_no_figure(context_of: Callable[..., Context], tmp_path: Path) -> None:
    context = context_of(tiny_model(4))
    count = len(held_out_of(context).documents)
    other = context_of(tiny_model(4))
    with_spans(other, tmp_path / "corpus", {number: [[0, 10**6]] for number in range(count)})
    clean = score_of("bits_per_byte", other).clean
    assert clean == {"clean_value": None, "clean_low": None, "clean_high": None, "leaked_share": 1.0}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_clean_and_leaked_bits_add_up(widths: list[int], data: st.DataObject) -> None:
    """For any tokens (some of no bytes) and any spans: what is clean and what is not make the whole."""
    sizes = np.array([0, 1, 2, 3])
    token = np.array(widths)
    count = int(sizes[token].sum())
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    nats = np.random.default_rng(len(widths)).random(len(token)) + 0.1
    scores = TokenScores(np.zeros(len(token), int), np.arange(len(token)), token, nats, np.ones(len(token), int))
    clean = scores.clean_bits_of_documents(sizes, [mask])[0]
    leaked = scores.clean_bits_of_documents(sizes, [~mask])[0]
    whole = scores.bits_of_documents(1)[0]
    if count:
        assert clean + leaked == pytest.approx(whole)
        assert -1e-9 <= clean <= whole + 1e-9
        if not mask.any():
            assert clean == pytest.approx(whole)


def test_a_file_of_the_users(context_of: Callable[..., Context], tmp_path: Path) -> None:
    context = context_of(tiny_model(4))
    own = held_out_of(context).documents
    lines = [json.dumps({"text": document.text}) for document in own]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    same = score_of("bits_per_byte", context, data=tmp_path / "texts.jsonl")
    assert same.value == pytest.approx(score_of("bits_per_byte", context).value, rel=1e-5)
    assert score_of("kneser_ney", context, data=tmp_path / "texts.jsonl").items == len(own)
    assert score_of("bits_per_byte", context, limit=2).items == 2
    (tmp_path / "one.txt").write_text("Only\nthis.")
    assert score_of("bits_per_byte", context, data=tmp_path / "one.txt").extra["bytes"] == 10
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(InputError, match=r'bad.jsonl:1: field "text" is no string'):
        score_of("bits_per_byte", context, data=tmp_path / "bad.jsonl")
