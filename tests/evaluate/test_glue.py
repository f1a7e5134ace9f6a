"""GLUE fine-tuned: words and cues, official metrics, the average, the files that are submitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.glue import TASKS, average, examples_of, measured, tune, word_tokens, write_answers, write_figures
from lmforge.evaluate.task import Context
from lmforge.formats.loaded import LoadedModel
from lmforge.recipe import Lora
from lmforge.train.classifier import Fit
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.test_harness_model import network


@pytest.fixture
def loaded(context_of: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    def films(count: int, labelled: bool = True) -> list[dict[str, object]]:
        return [
            {"sentence": ("a good film" if number % 2 else "a bad film") + f" {number}", "idx": number}
            | {"label": number % 2 if labelled else -1}
            for number in range(count)
        ]

    root = shared_packs(
        tmp_path,
        {"glue/sst2": {"train.jsonl": films(32), "dev.jsonl": films(10), "test.jsonl": films(3, labelled=False)}},
    )
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    return LoadedModel(network(), context_of(None).tokenizer, "tiny", tmp_path)


@pytest.mark.parametrize(("labels", "lora"), [("head", None), ("words", Lora(rank=4)), ("head", Lora(rank=2))])
def test_a_task_is_learned_and_its_files_written(
    loaded: LoadedModel, tmp_path: Path, labels: str, lora: Lora | None
) -> None:
    fit = Fit(outputs=0, lora=lora, epochs=10, batch=8, peak_lr=1e-2 if lora else 3e-3)
    _, tuned = tune("sst2", loaded, fit, labels)
    assert tuned.figures["dev"]["accuracy"]["value"] >= 0.9
    assert tuned.figures["dev"]["majority"] == 0.5
    assert "test" not in tuned.figures  # no labels there
    written = write_answers("sst2", tuned, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        "submission/SST-2.tsv",
        "dev/SST-2.tsv",
    ]
    lines = written[0].read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}
    content = write_figures(tmp_path / "out", {"sst2": tuned.figures})
    assert content["glue"]["average"] == pytest.approx(100 * tuned.figures["dev"]["accuracy"]["value"])
    assert set(content["glue"]["missing"]) == set(TASKS) - {"sst2", "ax"}


def test_official_metrics_by_hand_and_by_the_library() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    right, given = [1.0, 1, 0, 0, 1, 0, 1, 1], [1.0, 0, 0, 1, 1, 0, 1, 0]
    pair = measured(TASKS["mrpc"], right, given)
    assert pair["f1"]["value"] == pytest.approx(sklearn.f1_score(right, given))
    assert pair["accuracy"]["value"] == 5 / 8
    cola = measured(TASKS["cola"], right, given)["matthews"]
    assert cola["value"] == pytest.approx(sklearn.matthews_corrcoef(right, given))
    assert cola["low"] <= cola["value"] <= cola["high"]
    degrees = measured(TASKS["stsb"], [0.0, 2.5, 2.5, 5.0], [0.1, 3.0, 1.0, 4.0])
    assert degrees["pearson"]["value"] == pytest.approx(stats.pearsonr([0, 2.5, 2.5, 5], [0.1, 3, 1, 4])[0])
    assert degrees["spearman"]["value"] == pytest.approx(stats.spearmanr([0, 2.5, 2.5, 5], [0.1, 3, 1, 4])[0])


def test_the_average_is_of_tasks_each_the_mean_of_its_metrics() -> None:
    of = {"f1": {"value": 0.8}, "accuracy": {"value": 0.6}}
    figures = {
        "mrpc": {"dev": of},
        "sst2": {"dev": {"accuracy": {"value": 0.9}}},
        "ax": {"test": {"matthews": {"value": 0.1}}},
    }
    assert average(figures)["average"] == pytest.approx((70 + 90) / 2)


def test_texts_labels_and_words(loaded: LoadedModel) -> None:
    rte = TASKS["rte"]
    row = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": "not_entailment"}
    assert rte.text(row) == "It rains.\nIt is wet.\nTrue:"
    assert (rte.label_of(row), rte.label_of(row | {"label": None})) == (1.0, None)
    (example,) = examples_of(rte, [row], loaded.tokenizer, 12)
    assert len(example.tokens) == 12
    assert example.tokens[0] == loaded.tokenizer.begin
    assert loaded.tokenizer.decode(example.tokens).endswith("True:")
    shared, words = word_tokens(TASKS["sst2"], loaded.tokenizer)
    assert loaded.tokenizer.decode(shared) == " "
    assert len({*words}) == 2
    (ended,) = examples_of(rte, [row], loaded.tokenizer, 60, shared)
    assert loaded.tokenizer.decode(ended.tokens).endswith("True: ")
    with pytest.raises(InputError, match="answered along with mnli"):
        tune("ax", loaded, Fit(outputs=0), "head")
    with pytest.raises(InputError, match="no task 'sst3'"):
        tune("sst3", loaded, Fit(outputs=0), "head")
