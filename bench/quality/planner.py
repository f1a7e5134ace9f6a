"""The planner against published runs: seconds of a step foretold from shape, hardware and layout.

    python -m bench.quality.planner

Constants were fitted on every second run; the errors on the others are stated apart. Writes bench/results/planner.json.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.harness import Results
from lmforge.plan.published import RUNS, fitted
from lmforge.plan.step_time import step_time

RESULTS = Results("planner")


def summary(errors: list[float]) -> dict[str, Any]:
    """Of absolute errors."""
    size = [abs(error) for error in errors]
    return {"runs": len(size), "median": statistics.median(size), "mean": statistics.mean(size), "worst": max(size)}


def main() -> None:
    """Predict every run."""
    rows = []
    for number, run in enumerate(RUNS):
        seconds = step_time(run.shape, run.accelerator, run.layout).total
        flops = run.shape.model_flops(run.layout.batch * run.layout.sequence, run.layout.sequence)
        rows.append(
            {
                "run": run.name,
                "source": run.source,
                "devices": run.layout.devices,
                "measured_seconds": round(run.seconds, 4),
                "foretold_seconds": round(seconds, 4),
                "error": round(seconds / run.seconds - 1, 4),
                "utilization": round(flops / seconds / run.layout.devices / run.accelerator.flops, 4),
                "fitted": fitted(number),
            }
        )
    for name, of_fit in (("fitted", True), ("unseen", False)):
        RESULTS.add(name, summary([row["error"] for row in rows if row["fitted"] == of_fit]))
    RESULTS.publish({"runs": rows})


if __name__ == "__main__":
    main()
