"""A model scored by a suite: no recipe, no corpus; what is missing says how it is made; a killed one goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
from lmforge.errors import InputError
from lmforge.evaluate.compare import compare
from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.suites import evaluate_model, suites, tasks_of
from tests.evaluate.conftest import save
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.test_harness_model import network


@pytest.fixture
def model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"sentence": f"a film of {number} hours", "label": number % 2, "idx": number} for number in range(5)]
    root = shared_packs(tmp_path, {"glue/sst2": {"dev.jsonl": rows}, "glue/cola": {"dev.jsonl": rows}})
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    save(network(), tmp_path / "model", base)
    return tmp_path / "model"


def test_a_suite_is_a_family_and_full_is_all() -> None:
    known = suites()
    assert {"language", "winograd", "glue"} <= set(known)
    assert set(known["full"]) == {name for family, names in known.items() if family != "full" for name in names}
    assert set(tasks_of("glue,piqa", limit=3)) == {*known["glue"], "piqa"}
    assert tasks_of("piqa", limit=3, shots=2)["piqa"][1].limit == 3
    with pytest.raises(InputError, match="no such suite or task; suites are full"):
        tasks_of("everything")


def test_a_model_is_scored_and_missing_packs_say_how(model: Path, tmp_path: Path) -> None:
    figures = evaluate_model(model, "glue", tmp_path / "out")["tasks"]
    assert figures["sst2"]["items"] == 5
    assert figures["rte"]["value"] is None
    assert figures["rte"]["not_applicable"] == (
        "pack glue/rte: not on this machine; make it with: lmforge packs fetch glue/rte"
    )
    content = json.loads((tmp_path / "out" / "scores" / "sst2.json").read_text())
    assert content["value"] == figures["sst2"]["value"]
    with pytest.raises(InputError, match="lmforge packs fetch piqa"):
        evaluate_model(model, "piqa", tmp_path / "out2")


def test_two_models_compare_in_pairs_and_unlike_ones_are_refused(model: Path, base: Path, tmp_path: Path) -> None:
    other = network()
    other.initialise(9)
    save(other, tmp_path / "other", base)
    for name, folder in (("a", model), ("b", tmp_path / "other"), ("c", model)):
        evaluate_model(folder, "sst2,cola", tmp_path / name, limit=4 if name == "c" else None)
    row = compare(tmp_path / "a", tmp_path / "b")["tasks"]
    assert row["sst2"]["paired"]
    assert 0 < row["sst2"]["p_value"] <= 1
    assert row["cola"]["paired"]  # Matthews correlations, over the same items drawn
    with pytest.raises(InputError, match="data, prompts differ"):
        compare(tmp_path / "a", tmp_path / "c")


@pytest.mark.slow
def test_all_of_it_runs_in_a_network_namespace_without_routes(model: Path, tmp_path: Path) -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this kernel permits no namespaces")
    command = [*alone, sys.executable, "-m", "lmforge.cli", "evaluate", str(model), "--suite", "full"]
    done = subprocess.run(
        [*command, "--limit", "3", "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    tasks = json.loads(done.stdout)["tasks"]
    assert tasks["sst2"]["items"] == 3
    missing = {name: row["not_applicable"] for name, row in tasks.items() if row["value"] is None}
    assert missing.pop("few_shot_images") == "the network reads no images"
    assert all("packs fetch" in reason for reason in missing.values()), missing


def test_a_killed_evaluation_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_model(model, "sst2", tmp_path / "whole")["tasks"]["sst2"]["value"]
    add, answered = ItemLog.add, []

    def killed(log: ItemLog, asked: object, answer: object) -> None:
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(asked)
        add(log, asked, answer)

    monkeypatch.setattr(ItemLog, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, "sst2", tmp_path / "cut")
    assert not (tmp_path / "cut" / "scores").exists()
    again: list[object] = []
    monkeypatch.setattr(ItemLog, "add", lambda log, asked, answer: (again.append(asked), add(log, asked, answer))[1])
    assert evaluate_model(model, "sst2", tmp_path / "cut")["tasks"]["sst2"]["value"] == whole
    assert len(again) == 3  # of five items, two were there
