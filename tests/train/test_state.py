"""What a run remembers goes through the checkpoint whole, in the form that it always had."""

from __future__ import annotations

import json
import math

from lmforge.train.autotune import ExecutionPlan
from lmforge.train.precision import LossScaler
from lmforge.train.stability import Stability
from lmforge.train.state import TrainState
from lmforge.train.statistics import NoiseScale

WRITTEN_BEFORE = """{
 "step": 8, "seconds": 1.25, "best_step": 4, "best_valid": 3.5,
 "way": {"replicas": 2, "threads": 2, "micro_batch_tokens": 128, "compiled": false, "reason": "stated in the recipe",
  "precision": "fp32", "graphs": false},
 "way_on": ["cpu", 1], "valid": 3.75, "stability": {"losses": [5.5, 5.25], "skipped": [7]},
 "scaler": {"scale": 512.0, "calm": 3}, "noise": {"noise": 2.0, "signal": 0.5}
}"""


def fresh() -> TrainState:
    return TrainState({"stability": Stability(), "scaler": LossScaler(), "noise": NoiseScale()})


def test_a_checkpoint_of_before_is_read_and_written_the_same() -> None:
    state = fresh()
    state.load_state_dict(json.loads(WRITTEN_BEFORE))
    assert (state.step, state.best_step, state.valid) == (8, 4, 3.75)
    assert state.plan == ExecutionPlan(2, 2, 128, False, "stated in the recipe")
    assert json.dumps(state.state_dict()) == json.dumps(json.loads(WRITTEN_BEFORE))
    stability, scaler, noise = state.parts.values()
    assert (stability.skipped, scaler.scale, noise.tokens) == ([7], 512.0, 4.0)


def test_parts_that_an_old_checkpoint_does_not_have_begin_anew() -> None:
    state = fresh()
    state.load_state_dict(json.loads(WRITTEN_BEFORE))
    state.load_state_dict({"step": 3})
    assert state.state_dict() == fresh().state_dict() | {
        "step": 3,
        "way": state.state_dict()["way"],  # how a run is executed does not change on the way back to a checkpoint
        "way_on": ["cpu", 1],
    }


def test_the_best_validation_is_remembered() -> None:
    state = fresh()
    assert state.best_valid == math.inf
    for step, bits in ((1, 3.0), (2, 2.5), (3, 2.75)):
        state.step, state.valid = step, bits
        state.note_validation()
    assert (state.best_step, state.best_valid) == (2, 2.5)
