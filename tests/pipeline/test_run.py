"""What is stale is run, nothing else; lineage is written; bad input leaves nothing half written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmforge.compress.method import Evaluate
from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.evaluate.tasks.passkey import passage
from lmforge.evaluate.windows import score_documents, token_sizes
from lmforge.formats.native import load_network
from lmforge.pipeline import NAMES, find_recipe, locked, run_stages, stages, states
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import Record
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import Shards
from tests.conftest import tiny_recipe, tiny_texts
from tests.tokens.conftest import write_documents

Draw = Callable[[int], Batch]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def stage_states(run: Path, *overrides: str) -> dict[str, str]:
    return {s.name: s.state for s in states(load_recipe(run / "recipe.toml", overrides), run)}


def test_a_finished_run_has_every_file_and_is_up_to_date(run: Path) -> None:
    for path in (
        "recipe.toml",
        "record.json",
        "corpus/statistics.json",
        "corpus/samples.html",
        "tokens/tokenizer.json",
        "tokens/index.json",
        "train/metrics.jsonl",
        "model/model.safetensors",
        "compressed/report.json",
        "scores/bits_per_byte.json",
        "report.html",
    ):
        assert (run / path).is_file(), path
    assert set(stage_states(run).values()) == {"done"}


def test_how_training_is_run_makes_no_other_run(run: Path) -> None:
    assert set(
        stage_states(
            run, "train.max_seconds=5", "train.store=s3://bucket/run", "train.tensorboard=true", "train.profile=3"
        ).values()
    ) == {"done"}
    assert stage_states(run, "train.clip=0.5")["train"] == "stale"


def test_nothing_is_run_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "enter", lambda *_, **__: pytest.fail("ran a stage"))
    results = run_stages(find_recipe(run), run)
    assert {figures["was"] for figures in results.values()} == {"done"}
    assert list(results) == list(NAMES)


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("corpus.min_chars=65", "corpus"),
        ("tokens.vocab_size=321", "tokens"),
        ("model.layers=1", "train"),
        ("train.peak_lr=1e-3", "train"),
        ("compress.budget=0.5", "compress"),
        ("evaluate.items=3", "evaluate"),
        ("serve.port=1", None),
        ("seed=4", "corpus"),
    ],
)
def test_a_changed_key_makes_stale_what_depends_on_it(run: Path, override: str, first: str | None) -> None:
    at = NAMES.index(first) if first else len(NAMES)
    assert stage_states(run, override) == {name: "done" if index < at else "stale" for index, name in enumerate(NAMES)}


def test_only_what_depends_is_run(run: Path) -> None:
    recipe = load_recipe(run / "recipe.toml", ["evaluate.items=3"])
    results = run_stages(recipe, run)
    assert {name: figures["was"] for name, figures in results.items()} == {
        **dict.fromkeys(("corpus", "tokens", "train", "compress"), "done"),
        "evaluate": "stale",
        "report": "stale",
    }
    assert set(stage_states(run).values()) == {"done"}


def test_an_earlier_stage_that_gives_the_same_leaves_the_rest_done(run: Path) -> None:
    recipe = load_recipe(run / "recipe.toml", ["corpus.max_chars=999999"])
    results = run_stages(recipe, run)
    assert results["corpus"]["was"] == "stale"
    assert results["train"]["was"] == "done"


def test_a_lost_output_is_made_again(run: Path) -> None:
    (run / "tokens" / "tokenizer.json").unlink()
    assert stage_states(run)["tokens"] == "stale"
    assert stage_states(run)["corpus"] == "done"


def test_lineage(run: Path) -> None:
    stages = Record(run).stages
    assert list(stages) == list(NAMES)
    for name, entry in stages.items():
        assert {
            "key",
            "inputs",
            "outputs",
            "recipe",
            "seed",
            "code",
            "machine",
            "seconds",
            "finished",
            "figures",
        } <= set(entry), name
    assert stages["tokens"]["inputs"]["corpus"] == stages["corpus"]["outputs"]["corpus"]
    assert stages["compress"]["inputs"]["model"] == stages["train"]["outputs"]["model"]
    assert stages["report"]["inputs"]["scores"] == stages["evaluate"]["outputs"]["scores"]


def test_one_stage_needs_those_before_it(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts"), tmp_path / "run"))
    with pytest.raises(InputError, match="stage 'tokens' needs 'corpus', which is missing; run: lmforge corpus"):
        run_stages(recipe, recipe.directory, only="tokens")
    assert list(run_stages(recipe, recipe.directory, until="tokens")) == ["corpus", "tokens"]


def test_checkpoints_of_another_recipe_are_not_gone_on_from(run: Path) -> None:
    run_stages(load_recipe(run / "recipe.toml", ["train.peak_lr=1e-4"]), run, until="train")
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["lr"] for line in lines if "lr" in line) <= 1e-4


def test_fresh_does_it_again(run: Path) -> None:
    before = Record(run).stages["train"]
    run_stages(find_recipe(run), run, only="train", fresh=True)
    after = Record(run).stages["train"]
    assert after["figures"]["weights_sha256"] == before["figures"]["weights_sha256"]
    assert after["finished"] >= before["finished"]
    assert after["seconds"] != before["seconds"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(InputError, match="another lmforge process works on this run"),
        locked(tmp_path / "run"),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file stands where"), locked(tmp_path / "file"):
        pass


def test_no_run_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run here \(recipe\.toml is missing\)"):
        find_recipe(tmp_path)


def test_a_corpus_holds_nothing_that_its_model_is_scored_by(tmp_path: Path) -> None:
    texts = tiny_texts(tmp_path / "texts", 40)
    (texts / "essay.txt").write_text(
        f"It says somewhere:\n{passage().upper()}\nand so on, for long contexts are measured by that.\n"
    )
    recipe = load_recipe(
        tiny_recipe(tmp_path / "recipe.toml", texts, tmp_path / "run"),
        ['evaluate.tasks=["passkey"]', "corpus.analyse_bytes=0"],
    )
    figures = run_stages(recipe, tmp_path / "run", until="corpus")["corpus"]
    assert figures["dropped"]["contaminated"] == 1
    assert figures["decontamination"]["found"] == {"task passkey": 1}
    assert states(recipe, tmp_path / "run")[0].state == "done"
    other = load_recipe(tmp_path / "recipe.toml", ['evaluate.tasks=["bits_per_byte"]', "corpus.analyse_bytes=0"])
    assert states(other, tmp_path / "run")[0].state == "stale"  # scored by other texts, another corpus
    assert states(other, tmp_path / "run")[0].inputs.keys() < states(recipe, tmp_path / "run")[0].inputs.keys()


def test_compression_is_calibrated_and_judged_by_what_the_loss_counts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples with questions that the loss leaves out, packed whole as fine-tuning packs them."""
    splits = {split: [*read_documents(run / "corpus", split)] for split in ("train", "valid", "test")}
    for documents in splits.values():
        for document in documents:
            document["meta"] = {"loss_spans": [[len(document["text"]) // 2, len(document["text"])]]}
    recipe = load_recipe(
        run / "recipe.toml",
        ["tokens.packing=best_fit", "train.validate_tokens=100000000", "compress.calibration_rows=5"],
    )
    write_documents(tmp_path / "masked", splits)
    shutil.rmtree(run / "tokens")
    build_tokens(recipe, tmp_path / "masked", run / "tokens")
    given: dict[str, Any] = {}

    def compress(recipe: Recipe, model: Path, out: Path, draw: Draw, evaluate: Evaluate) -> dict[str, Any]:
        given.update(draw=draw, calibration=draw(0), figure=evaluate(load_network(model))["bits_per_byte"])
        return {}

    monkeypatch.setattr(stages, "compress", compress)
    stages._compress(recipe, run)
    assert len(given["calibration"].inputs) == 5
    left_out = (given["calibration"].targets < 0).mean()
    assert 0.3 < left_out < 0.7
    assert given["calibration"].documents is not None
    assert (draw_again := given["draw"](7)).inputs.tolist() == given["draw"](7).inputs.tolist()
    assert draw_again.inputs.tolist() != given["calibration"].inputs.tolist()
    shards = Shards.open(run / "tokens", "valid")
    assert shards.masked
    model, context = load_network(run / "model"), recipe.tokens.context
    sizes = token_sizes(Tokenizer.load(run / "tokens" / "tokenizer.json"))
    nats = size = 0.0
    for start, whole in shards.documents[:, :2].tolist():
        length = min(whole, 8 * context + 1)
        scores = score_documents(model, shards, np.array([[start, length]]), context)
        counts = shards.counts(start + 1, length - 1)
        nats, size = nats + scores.nats[counts].sum(), size + sizes[scores.token[counts]].sum()
    assert given["figure"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_finished_run_whose_texts_are_gone_stays_done_and_says_so(tmp_path: Path) -> None:
    texts = tiny_texts(tmp_path / "texts")
    recipe = load_recipe(tiny_recipe(tmp_path / "recipe.toml", texts, tmp_path / "run"), ["corpus.analyse_bytes=0"])
    run_stages(recipe, tmp_path / "run", until="tokens")
    before = states(recipe, tmp_path / "run")[0]
    texts.rename(tmp_path / "elsewhere")
    corpus, tokens, train, *_ = states(recipe, tmp_path / "run")
    assert (corpus.state, tokens.state, train.state) == ("done", "done", "missing")
    assert corpus.gone == ("source 0 (folder)",)
    assert (corpus.key, corpus.inputs) == (before.key, before.inputs)
    assert run_stages(recipe, tmp_path / "run", until="tokens")["corpus"]["was"] == "done"
    other = load_recipe(tmp_path / "recipe.toml", ["corpus.min_chars=99", "corpus.analyse_bytes=0"])
    assert states(other, tmp_path / "run")[0].state == "stale"
    with pytest.raises(InputError, match="texts"):
        run_stages(other, tmp_path / "run", until="tokens")
    assert (tmp_path / "run" / "corpus" / "manifest.json").exists()


def test_a_stage_says_why_it_is_done_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(run / "recipe.toml", ["evaluate.items=3"])
    why = {state.name: state.why for state in states(recipe, run)}
    assert why == {
        **dict.fromkeys(("corpus", "tokens", "train", "compress"), ""),
        "evaluate": "evaluate.items 4 → 3",
        "report": "after evaluate",
    }
    run_stages(recipe, run)
    assert "── evaluate (again: evaluate.items 4 → 3)" in capsys.readouterr().err


def test_leftovers_of_a_killed_run_are_swept(run: Path) -> None:
    leftover = run / "train" / "snapshots" / ".step-00000003.q1w2e3r4.tmp"
    leftover.mkdir(parents=True)
    run_stages(find_recipe(run), run)
    assert not leftover.exists()
