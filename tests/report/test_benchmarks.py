"""The page of benchmarks: intervals, published figures with their sources, claims marked, right and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.report.benchmarks import PAGE, beside_published, published, write_benchmarks


def score(value: float | None, **more: object) -> dict[str, object]:
    return {"metric": "accuracy", "value": value, "low": 0.2, "high": 0.4, "items": 10, "models": {}} | more


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "scores").mkdir(parents=True)
    key = {"comparison_key": {"task": "x"}, "ratio": None}
    parts = {f"subject {number}": {"value": number / 4, "items": 3} for number in range(4)}
    tasks = {
        "piqa": score(0.3, protocol="half of the set", **key),
        "wsc273": score(0.5, parts=parts, **key),
        "rte": score(None, not_applicable="pack glue/rte: not on this machine", **key),
    }
    for name, content in tasks.items():
        (folder / "scores" / f"{name}.json").write_text(json.dumps(content))
    rows = [
        {"prompt": "Goal <b>", "completion": " said", "answer": " right one", "acc": number % 2} for number in range(9)
    ]
    (folder / "scores" / "piqa.items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_page_says_all_of_it(evaluation: Path) -> None:
    path = write_benchmarks(evaluation)
    text = path.read_text()
    assert path.name == PAGE
    assert "Pythia-70M" in text
    assert "EleutherAI/pythia" in text
    assert "claim, unverified" in text  # Winograd 95.7
    assert "95.7" in text
    assert "half of the set" in text
    assert "pack glue/rte: not on this machine" in text
    assert "Goal &lt;b&gt;" in text
    assert text.count("[right: right one]") == 6  # three right, three wrong
    assert "http://" not in text
    assert "https://" not in text


def test_every_published_figure_has_a_source_and_only_claims_are_claims() -> None:
    content = published()
    for each in content["figures"]:
        assert each["source"] in content["sources"]
        assert bool(each.get("claim")) == (each["source"] == "description")
    assert beside_published({"bits_per_byte": score(1.0)}) is None


def test_no_scores_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scores here"):
        write_benchmarks(tmp_path)
