"""Windows, answers back in characters, the threshold from questions that are not scored, and files for the script."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmforge.errors import InputError
from lmforge.evaluate.spans import (
    Windows,
    best_span,
    measured,
    middle_of,
    readings,
    tune_spans,
    windows_of,
    write_pointing,
)
from lmforge.evaluate.squad import Answer, Parts, Question, parts_of, questions_of
from lmforge.evaluate.squad_metrics import official
from lmforge.evaluate.task import Context
from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Lora
from lmforge.tokens.bpe import Tokenizer
from lmforge.train.classifier import Fit
from lmforge.train.spans import Scores, SpanReader
from tests.evaluate.conftest import VOCABULARY
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.squad_for_tests import article, squad_pack

LONG = "Ünder the old tree she found, after 12 years, the golden ring — and then “lost” it again in the deep river."


@pytest.fixture
def tokenizer(context_of: Callable[..., Context]) -> Tokenizer:
    return context_of(None).tokenizer


def network(context: int) -> GPT:
    model = GPT(GPTConfig(VOCABULARY, context, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64))
    model.initialise(3)
    return model.eval()


def asked(text: str, answer: str | None) -> Question:
    answers = () if answer is None else (Answer(answer, text.index(answer)),)
    return Question("q", "t", text, "What?", answers)


def test_windows_hold_every_token_and_each_is_best_in_one(tokenizer: Tokenizer) -> None:
    question = asked(LONG, "golden ring")
    (read,) = windows_of([question], tokenizer, 512, Windows(size=48, stride=8))
    tokens, places = tokenizer.encode_spans(LONG)
    assert len(read.cuts) > 3
    held: list[int] = []
    for cut in read.cuts:
        row = cut.row
        assert len(row.tokens) <= 48
        assert row.tokens[row.first : row.stop] == tokens[cut.offset : cut.offset + row.stop - row.first]
        held += [cut.offset + int(at) for at in np.flatnonzero(cut.best)]
        if row.start < row.stop:
            first, last = (cut.offset + each - row.first for each in (row.start, row.end))
            assert LONG[places[first, 0] : places[last, 1]].strip() == "golden ring"
        else:
            assert row.start == row.end == len(row.tokens) - 1
    assert sorted(held) == list(range(len(tokens)))
    assert sum(cut.row.start < cut.row.stop for cut in read.cuts) >= 1
    assert [cut.offset for cut in read.cuts] == [8 * number for number in range(len(read.cuts))]
    (whole,) = windows_of([asked(LONG, None)], tokenizer, 512)
    assert len(whole.cuts) == 1
    assert whole.cuts[0].row.start == len(whole.cuts[0].row.tokens) - 1
    with pytest.raises(InputError, match=r"question q: .* leave no room"):
        windows_of([question], tokenizer, 16)


def test_every_answer_comes_back_from_its_tokens(tokenizer: Tokenizer) -> None:
    for answer in ("Ünder", "12", "golden ring — and", "“lost” it", "river."):
        (read,) = windows_of([asked(LONG, answer)], tokenizer, 512)
        row = read.cuts[0].row
        first, last = row.start - row.first, row.end - row.first
        assert answer in LONG[read.places[first, 0] : read.places[last, 1]]
    wrong = Question("q", "t", LONG, "What?", (Answer("golden ring", 3),))  # does not stand there
    (found,), (right,) = (windows_of([each], tokenizer, 512) for each in (wrong, asked(LONG, "golden ring")))
    assert found.cuts[0].row == right.cuts[0].row
    nowhere = Question("q", "t", LONG, "What?", (Answer("silver ring", 3),))
    (none,) = windows_of([nowhere], tokenizer, 512)
    assert none.cuts[0].row.start == len(none.cuts[0].row.tokens) - 1


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 12):
        starts, ends = rng.normal(size=(2, count))
        may = rng.random(count) < 0.7
        may[0] = True
        pairs = [
            (starts[a] + ends[b], a, b) for a in range(count) for b in range(a, min(count, a + 4)) if may[a]
        ]  # at most 4 tokens
        assert best_span(Scores(starts.tolist(), ends.tolist(), 0.0), may, 4) == pytest.approx(max(pairs))
    assert best_span(Scores([], [], 0.0), np.array([], dtype=bool), 4)[0] == -math.inf


def test_windows_compete_and_the_least_null_counts(tokenizer: Tokenizer) -> None:
    question = asked(LONG, "golden ring")
    read = windows_of([question], tokenizer, 512, Windows(size=48, stride=8))
    cuts = read[0].cuts
    starts = [cut.row.start - cut.row.first if cut.row.start < cut.row.stop else None for cut in cuts]
    number = next(n for n, at in enumerate(starts) if at is not None and cuts[n].best[at])

    class Told(SpanReader):
        def scores(self, rows: object) -> list[Scores]:
            found = []
            for n, cut in enumerate(cuts):
                size = cut.row.stop - cut.row.first
                starts, ends = [0.0] * size, [0.0] * size
                if n == number:
                    starts[cut.row.start - cut.row.first], ends[cut.row.end - cut.row.first] = 2.0, 2.0
                found.append(Scores(starts, ends, 3.0 if n == 0 else 9.0))
            return found

    (reading,) = readings(Told(network(64)), [question], read, 30)
    assert reading.text == "golden ring"
    assert reading.none == pytest.approx(1 / (1 + math.exp(1)))  # 4 of the span, 3 of the least null


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_it_is_learned_and_the_files_give_the_same_figures(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None
) -> None:
    monkeypatch.setenv("LMFORGE_DATA", str(shared_packs(tmp_path, squad_pack()).parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    parts, out = parts_of(), tmp_path / "out"
    fit = Fit(0, lora=lora, epochs=6, batch=8, peak_lr=5e-3, precision="fp32")
    pointing = tune_spans(LoadedModel(network(96), tokenizer, "tiny", tmp_path), parts, fit)
    figures = pointing.figures
    assert figures["items"] == len(parts.scored) == 16
    assert figures["no_answer_baseline"] == 0.5
    assert set(pointing.predictions) == {each.id for each in parts.scored}
    for each in parts.scored:
        assert pointing.spans[each.id] in each.context
        assert pointing.predictions[each.id] in ("", pointing.spans[each.id])
    write_pointing(pointing, parts.scored, out)
    given, spans, none, data = (
        json.loads((out / f"{name}.json").read_text()) for name in ("predictions", "spans", "na_prob", "dev")
    )
    gold = {each.id: [answer.text for answer in each.answers] for each in questions_of(data["data"])}
    threshold = figures["null_threshold"]["threshold"]
    plain, cut = official(gold, given), official(gold, spans, none, threshold)
    for key, value in plain.items():
        assert value == pytest.approx(cut[key]) == pytest.approx(figures["official"][key])
    assert figures["official"]["best_f1"] >= figures["official"]["f1"] - 1e-9
    assert json.loads((out / "squad.json").read_text())["f1"] == figures["f1"]
    assert figures["f1"]["value"] == pytest.approx(plain["f1"] / 100)


def test_the_threshold_is_not_chosen_on_what_is_scored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Other scored questions leave the threshold as it is; other questions to choose it on do not."""
    questions = [asked(f"{LONG} {number}", "golden ring" if number % 2 else None) for number in range(8)]
    questions = [each._replace(id=str(number)) for number, each in enumerate(questions)]
    fit = Fit(0, epochs=1, batch=4, peak_lr=1e-4, precision="fp32")

    def threshold(chosen: list[Question], scored: list[Question]) -> tuple[float, float]:
        loaded = LoadedModel(network(256), tokenizer, "tiny", tmp_path)
        figures = tune_spans(loaded, Parts(questions[:4], chosen, scored, {}), fit).figures["null_threshold"]
        return figures["threshold"], figures["unanswerable_there"]

    assert threshold(questions[4:6], questions[6:]) == threshold(questions[4:6], questions[:2])
    all_wrong = [each._replace(answers=()) for each in questions[4:6]]
    assert threshold(all_wrong, questions[6:]) == (0.0, 1.0)  # nothing is ever answered


def test_the_threshold_stands_in_the_middle() -> None:
    assert middle_of(0.25, [0.5, 0.1, 0.25, 0.75]) == 0.375
    assert middle_of(0.75, [0.5, 0.75]) == 0.75
    assert middle_of(0.0, [0.5, 0.75]) == 0.0


@pytest.mark.slow
def test_whether_and_where_is_learned_from_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained network, from 480 questions: far above answering nothing, on articles that it has not seen."""
    files = {
        "train_v2.0_articles.jsonl": [article(number) for number in range(120)],
        "dev_v2.0_articles.jsonl": [article(number) for number in range(200, 220)],
    }
    monkeypatch.setenv("LMFORGE_DATA", str(shared_packs(tmp_path, {"squad": files}).parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    fit = Fit(0, epochs=16, batch=16, peak_lr=3e-3, precision="fp32")
    figures = tune_spans(LoadedModel(network(128), tokenizer, "tiny", tmp_path), parts_of(), fit).figures
    assert figures["f1_above_baseline"]["low"] > 0.1
    assert figures["official"]["NoAns_f1"] > 60
    assert figures["official"]["HasAns_f1"] > 60


def test_how_far_above_nothing() -> None:
    questions = [asked(LONG, "golden ring")._replace(id=str(n)) for n in range(6)]
    questions += [asked(LONG, None)._replace(id=str(n)) for n in range(6, 8)]
    spans = {each.id: "golden ring" for each in questions}
    none = {each.id: 0.1 if each.answers else 0.9 for each in questions}
    figures = measured(questions, spans, none, 0.5)
    assert figures["f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert figures["no_answer_baseline"] == 0.25
    above = figures["f1_above_baseline"]
    assert above["value"] == 0.75
    assert 0 < above["low"] < 0.75 < above["high"] <= 1
