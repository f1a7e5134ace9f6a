"""Scores with their intervals, and what was written."""

import json
from pathlib import Path

from lmforge.report.loaded import LoadedRun
from lmforge.report.scores import cards, entropy, levels, score_rows, scores


def test_models_of_a_task_stand_side_by_side(finished_run: Path) -> None:
    run = LoadedRun(finished_run)
    rows = score_rows(run.tasks()["bits_per_byte"])
    assert [(name, row["value"]) for name, row in rows] == [("model", 1.658), ("compressed", 1.661)]
    assert levels(run) == [("5-gram Kneser-Ney (test text)", 1.821)]
    assert entropy(run) == (1.658, None)
    (card,) = cards(run)
    assert (card.value, card.verdict, card.good) == (1.658, "9.0% below", True)
    assert score_rows({"models": {"sparse": {"value": 1.0}}}) == [("sparse", {"value": 1.0})]


def test_the_table_says_what_a_score_rests_on(finished_run: Path) -> None:
    page = scores(LoadedRun(finished_run))
    for wanted in (
        "1.644 – 1.672",
        "<td>baseline</td>",
        "reference 0.984",
        "not applicable: too short a context",
        "9.0% fewer bits",
    ):
        assert wanted in page, wanted


def test_only_the_first_items_are_shown(finished_run: Path) -> None:
    page = scores(LoadedRun(finished_run))
    assert "number: 5" in page
    assert "number: 6" not in page
    assert "<mark>    return seq" in page


def test_samples_in_the_score_itself(finished_run: Path) -> None:
    task = {"metric": "m", "value": 1, "samples": ["once upon", {"prompt": "p", "completion": "a time"}]}
    (finished_run / "scores/stories.json").write_text(json.dumps(task))
    assert "a time" in scores(LoadedRun(finished_run))
    (finished_run / "scores/stories.json").write_text(json.dumps({**task, "samples": ["once upon"]}))
    assert "once upon" in scores(LoadedRun(finished_run))


def test_keys_found_by_length_and_depth_are_a_map_a_model(finished_run: Path) -> None:
    row = {
        "metric": "share of keys found",
        "value": 0.9,
        "items": 40,
        "lengths": [256, 1024],
        "depths": [0.25, 0.75],
        "accuracy": [[1, 1], [0.5, 1]],
    }
    (finished_run / "scores/passkey.json").write_text(
        json.dumps({**row, "models": {"pooled": row, "broken": {"lengths": 3, "accuracy": [None]}}})
    )
    page = scores(LoadedRun(finished_run))
    assert page.count("Keys found, ") == 4  # a caption and a description for each of two models
    assert "<title>1,024, 25%: 50.0%</title>" in page


def test_the_clean_figure_stands_beside_the_whole(finished_run: Path) -> None:
    for name, value, clean in (("bits_per_byte", 1.658, 1.701), ("kneser_ney", 1.821, 1.9)):
        score = {"metric": "bits per byte", "value": value, "clean_value": clean, "leaked_share": 0.24}
        (finished_run / f"scores/{name}.json").write_text(json.dumps(score))
    run = LoadedRun(finished_run)
    assert cards(run)[0].note == "5-gram Kneser-Ney (1.821); 1.701 on unleaked bytes against 1.9"
    assert "on unleaked bytes 1.70, leaked share of the bytes 0.240" in scores(run)
