"""`metrics.jsonl`: one JSON object a step, each step exactly once however often the run was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """Appends to a metrics file; opened at a step, it first drops what came after it (a killed run may have got further)."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self.file: TextIO = path.open("a")

    def write(self, **values: Any) -> None:
        """Add one line; it reaches the file at once."""
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
