"""Where the model that training goes on from came from, and its licence: kept beside the checkpoints, for the notes of
the model that comes of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmforge.formats.native import origin_of
from lmforge.record import write_atomic

ORIGIN = "origin.json"


def keep_origin(out: Path, notes: Mapping[str, Any]) -> None:
    """Remember what the notes of a base say of its origin in `out`, the folder of the checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / ORIGIN, json.dumps(origin_of(notes), indent=1) + "\n")


def kept_origin(out: Path) -> dict[str, Any]:
    """What `keep_origin` kept; {} where the model has no base."""
    with contextlib.suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads((out / ORIGIN).read_text())
        return content
    return {}
