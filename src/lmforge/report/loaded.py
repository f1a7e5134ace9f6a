"""The files of a run, read leniently: a missing, broken or surprising file is an empty one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from lmforge.record import content_hash, hash_file
from lmforge.report.markup import at, entries, mapping
from lmforge.train.journal import read_lines

_LONGEST_LINE = 200_000  # characters of one item's line that are read


class LoadedRun:
    """What a run has left so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = mapping(mapping(self.json("record.json")).get("stages"))
        self.name = directory.resolve().name
        for line in self.text("recipe.toml").splitlines():
            if line.startswith("name = "):
                self.name = line.removeprefix("name = ").strip().strip('"') or self.name
                break

    def text(self, *parts: str) -> str:
        """A text file, "" where there is none."""
        try:
            return self.directory.joinpath(*parts).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return ""

    def json(self, *parts: str) -> Any:
        """A JSON file's value, None where there is none."""
        try:
            return json.loads(self.text(*parts))
        except (ValueError, RecursionError):
            return None

    def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""
        return self.directory.joinpath(*parts).is_file()

    def stage(self, name: str) -> dict[str, Any]:
        """The record's entry of a stage."""
        return mapping(self.record.get(name))

    def figures(self, name: str) -> dict[str, Any]:
        """The key figures that a stage returned."""
        return mapping(self.stage(name).get("figures"))

    def state(self, name: str) -> str:
        """done; or, where the record and the files disagree, why not; or "not run yet"."""
        entry = self.stage(name)
        if not entry:
            return "not run yet"
        if any(self._hash(path) != digest for path, digest in mapping(entry.get("outputs")).items()):
            return "altered since"
        made = {
            path: digest for other in self.record.values() for path, digest in mapping(at(other, "outputs")).items()
        }
        changed = [path for path, digest in mapping(entry.get("inputs")).items() if made.get(path, digest) != digest]
        return f"made from an earlier {changed[0]}" if changed else "done"

    def _hash(self, name: str) -> str | None:
        path = self.directory / name
        try:
            return content_hash(path) if path.is_dir() else hash_file(path) if path.is_file() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a manifest that is not one
            return None

    def compression_steps(self) -> list[dict[str, Any]]:
        """The rows of compressed/report.json: before, then after each step."""
        return entries(at(self.json("compressed", "report.json"), "steps")) or entries(
            self.figures("compress").get("steps")
        )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of train/metrics.jsonl."""
        try:
            return entries(read_lines(self.directory / "train" / "metrics.jsonl"))
        except (OSError, ValueError, RecursionError):
            return []

    def tasks(self) -> dict[str, dict[str, Any]]:
        """scores/TASK.json by task, in alphabetical order."""
        paths = sorted(self.directory.glob("scores/*.json"))
        contents = {path.stem: mapping(self.json("scores", path.name)) for path in paths}
        return {name: content for name, content in contents.items() if content and name != "manifest"}

    def items(self, task: str, most: int) -> list[dict[str, Any]]:
        """The first `most` lines of scores/TASK.items.jsonl."""
        lines = []
        try:
            with (self.directory / "scores" / f"{task}.items.jsonl").open(encoding="utf-8", errors="replace") as file:
                for line in itertools.islice(iter(lambda: file.readline(_LONGEST_LINE), ""), most):
                    lines.append(json.loads(line))
        except (OSError, ValueError, RecursionError):
            pass
        return entries(lines)
