"""Which stages are stale, and running them in order.

corpus ─▶ tokens ─▶ train ─▶ compress ─▶ evaluate ─▶ report
"""

from lmforge.pipeline.run import find_recipe, is_trained, locked, run_stages, states
from lmforge.pipeline.stages import NAMES, STAGES, Stage, ablation, stage_named
from lmforge.pipeline.state import State

__all__ = [
    "NAMES",
    "STAGES",
    "Stage",
    "State",
    "ablation",
    "find_recipe",
    "is_trained",
    "locked",
    "run_stages",
    "stage_named",
    "states",
]
