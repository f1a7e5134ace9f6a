"""Parts of the page, each from its own files."""

import json
from pathlib import Path

from lmforge.report import sections
from lmforge.report.loaded import LoadedRun


def test_better_and_worse_are_told_apart(finished_run: Path) -> None:
    page = sections.compression(LoadedRun(finished_run))
    assert '<small class="good">0.257×</small>' in page  # file
    assert '<small class="good">1.87×</small>' in page  # decoding
    assert '<small class="bad">0.971×</small>' in page  # prefill
    assert '<small class="bad">1.0019×</small>' in page  # bits per byte
    assert "<small>the same</small>" in page  # multiplications
    assert "peak memory" not in page  # not measured in this run


def test_the_loss_curves_lie_over_the_baseline(finished_run: Path) -> None:
    page = sections.training(LoadedRun(finished_run))
    assert page.count("<svg") == 5
    assert page.count("Kneser-Ney") >= 2
    assert "validation: from" in page
    (finished_run / "scores/kneser_ney.json").unlink()
    assert "Kneser-Ney" not in sections.training(LoadedRun(finished_run))


def test_time_is_in_fitting_units(finished_run: Path) -> None:
    path = finished_run / "train/metrics.jsonl"
    assert ">minutes</text>" in sections.training(LoadedRun(finished_run))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**line, "seconds": line.get("seconds", 0) * 100}) for line in lines))
    assert ">hours</text>" in sections.training(LoadedRun(finished_run))


def test_splits_of_the_tokens_are_one_table(finished_run: Path) -> None:
    page = sections.tokens(LoadedRun(finished_run))
    assert page.count("8,420,000") == 1
    assert "27.9 MB" in page


def test_machines_that_differ_are_named_apart(finished_run: Path) -> None:
    path = finished_run / "record.json"
    record = json.loads(path.read_text())
    assert sections.lineage(LoadedRun(finished_run)).count("<b>machine</b>") == 1
    record["stages"]["train"]["machine"]["gpu"] = "Example GPU"
    path.write_text(json.dumps(record))
    page = sections.lineage(LoadedRun(finished_run))
    assert page.count("<b>machine</b>") == 2
    assert "(train): processor" in page


def test_the_models_of_the_runs_weights_are_a_table(finished_run: Path) -> None:
    path = finished_run / "record.json"
    record = json.loads(path.read_text())
    assert "weights give" not in sections.training(LoadedRun(finished_run))
    record["stages"]["train"]["figures"] |= {
        "chosen": "greedy soup",
        "candidates": [
            {"name": "greedy soup", "members": [90, 100], "bits_per_byte": 1.98, "networks": 1},
            {"name": "step 100", "members": [100], "bits_per_byte": 2.0, "networks": 1},
        ],
    }
    path.write_text(json.dumps(record))
    page = sections.training(LoadedRun(finished_run))
    assert "<b>greedy soup (taken)</b>" in page
    assert "-1.00%" in page
