"""What is known of a stage without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmforge.pipeline.keys import differences, in_words, without_how
from lmforge.record import hash_json

GONE = "gone"  # in place of the hash of an input that cannot be read now


@dataclasses.dataclass(frozen=True)
class State:
    """One stage: done, stale or missing; `why` it is not done; what it is, or would be, made from.

    Inputs that cannot be read any more (`gone`) stand in `inputs` with the hash that they had.
    """

    name: str
    state: str  # done | stale | missing
    key: str
    part: dict[str, Any]
    inputs: dict[str, str]
    seconds: float | None
    figures: dict[str, Any]
    why: str = ""
    gone: tuple[str, ...] = ()


def key_of(stage: str, version: int, part: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The hash of all that a stage's outputs depend on."""
    return hash_json({"stage": stage, "format": version, "recipe": part, "inputs": dict(inputs)})


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the record says that a stage was made from."""

    part: dict[str, Any]
    inputs: dict[str, str]
    is_of_this_format: bool

    @classmethod
    def of(cls, stage: str, version: int, entry: Mapping[str, Any]) -> Recorded:
        """A record's entry, whatever version of lmforge wrote it: keys that say how are left out, and a base model
        counts as an input."""
        same_format = key_of(stage, version, entry["recipe"], entry["inputs"]) == entry["key"]
        part, inputs = without_how(entry["recipe"]), dict(entry["inputs"])
        if "base" in part:
            inputs["base"] = part.pop("base")
            if not part.get("finetune"):  # tokens: nothing of [finetune] but its base
                part.pop("finetune", None)
        return cls(part, inputs, same_format)

    def completed(self, inputs: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """(the present inputs, with the recorded hash of each that is gone; the names of those)."""
        gone = tuple(name for name, digest in inputs.items() if digest == GONE)
        # several recorded inputs may stand behind one that cannot be listed any more: "benchmark …", "corpus.…"
        kinds = {_kind(name) for name in gone}
        return {
            **{name: digest for name, digest in inputs.items() if name not in gone},
            **{name: digest for name, digest in self.inputs.items() if name in gone},
            **{name: digest for name, digest in self.inputs.items() if _kind(name) in kinds and name not in inputs},
        }, gone

    def changes(self, part: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
        """What differs from it now, by name."""
        changed = differences(self.part, part)
        return changed | {name: (digest, now) for name, (digest, now) in differences(self.inputs, inputs).items()}


def why_stale(recorded: Recorded, part: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """In words, why a stage whose record this is has to be done again; '' where it has not."""
    if changes := recorded.changes(part, inputs):
        return in_words(changes)
    return "" if recorded.is_of_this_format else "another version of lmforge made it"


def _kind(name: str) -> str:
    return name.replace(".", " ").split(" ")[0]
