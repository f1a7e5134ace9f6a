"""A stage's record against what it would be made from now: what is gone, what changed, what an older version wrote."""

from __future__ import annotations

from typing import Any

from lmforge.pipeline.state import GONE, Recorded, key_of, why_stale


def entry(part: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    return {"recipe": part, "inputs": inputs, "key": key_of("s", 1, part, inputs)}


def test_a_changed_key_or_input_is_named() -> None:
    recorded = Recorded.of("s", 1, entry({"train": {"clip": 1.0}}, {"tokens": "a"}))
    assert why_stale(recorded, {"train": {"clip": 1.0}}, {"tokens": "a"}) == ""
    assert why_stale(recorded, {"train": {"clip": 0.5}}, {"tokens": "b"}) == "train.clip 1.0 → 0.5, tokens a → b"
    other = Recorded.of("s", 2, entry({"train": {"clip": 1.0}}, {"tokens": "a"}))
    assert "another version" in why_stale(other, {"train": {"clip": 1.0}}, {"tokens": "a"})


def test_inputs_that_are_gone_count_as_they_were() -> None:
    recorded = Recorded.of("s", 1, entry({}, {"source 0 (folder)": "a", "benchmark x": "b", "benchmark y": "c"}))
    inputs, gone = recorded.completed({"source 0 (folder)": GONE, "benchmark all": GONE})
    assert gone == ("source 0 (folder)", "benchmark all")
    assert inputs == recorded.inputs
    assert recorded.completed({"source 0 (folder)": "z"})[0] == {"source 0 (folder)": "z"}  # there, and another


def test_records_of_older_versions_stay_good() -> None:
    """They held keys that say how, and the base among the recipe's keys."""
    part = {"train": {"keep": 2, "clip": 1.0}, "finetune": {"epochs": 3.0}, "base": "h"}
    recorded = Recorded.of("s", 1, entry(part, {"tokens": "a"}))
    now = {"train": {"clip": 1.0}, "finetune": {"epochs": 3.0}}
    assert why_stale(recorded, now, {"tokens": "a", "base": "h"}) == ""
    recorded = Recorded.of("s", 1, entry({"tokens": {"vocab_size": 300}, "finetune": {}, "base": "h"}, {}))
    assert why_stale(recorded, {"tokens": {"vocab_size": 300}}, {"base": "h"}) == ""
