"""What `make demo` took and reached, read from the record of its run; nothing is run here.

    make demo && python -m bench.speed.demo runs/laptop

Minutes are of all stages together, after installation. The baseline is a 5-gram Kneser-Ney model of the same training
text, scored on the same bytes; the clean scores leave out what stands in training too. Writes bench/results/demo.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.harness import Results

RESULTS = Results("demo", packages=("numba",))


def figures(run: Path) -> dict[str, Any]:
    """Of a finished run of recipes/laptop.toml."""
    stages = json.loads((run / "record.json").read_text())["stages"]
    scores = {
        name: json.loads((run / "scores" / f"{name}.json").read_text()) for name in ("bits_per_byte", "kneser_ney")
    }
    ours, baseline = scores["bits_per_byte"], scores["kneser_ney"]
    statistics = json.loads((run / "corpus" / "statistics.json").read_text())
    held = statistics["held_out"]
    return {
        "minutes": sum(stage["seconds"] for stage in stages.values()) / 60,
        **{f"{name}_seconds": stage["seconds"] for name, stage in stages.items()},
        "weights_sha256": stages["train"]["figures"]["weights_sha256"],
        "tokens_per_second": stages["train"]["figures"]["tokens_per_second"],
        "bits_per_byte": ours["value"],
        "clean_bits_per_byte": ours.get("clean_value"),
        "kneser_ney": baseline["value"],
        "kneser_ney_clean": baseline.get("clean_value"),
        "below_kneser_ney_clean": 1 - ours["clean_value"] / baseline["clean_value"] if "clean_value" in ours else None,
        "leaked_share_valid": held["valid"]["leaked_share"],
        "leaked_share_test": held["test"]["leaked_share"],
        "documents_valid": held["valid"]["documents"],
        "documents_test": held["test"]["documents"],
    }


def main() -> None:
    """Read the run and enter its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--row", default="demo", help="name of the row; another for another kind of processor")
    arguments = parser.parse_args()
    RESULTS.publish({arguments.row: figures(arguments.run)})


if __name__ == "__main__":
    main()
