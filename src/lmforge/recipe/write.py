"""Recipe → TOML."""

from __future__ import annotations

import json
import re
from typing import Any

from lmforge.recipe.schema import Recipe


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML; `load_recipe` of it gives an equal recipe. Keys whose value is None (derived at run time) are
    left out."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for name, section in data.items():
        if not isinstance(section, dict):
            continue
        lines += ["", f"[{name}]"]
        tables = {
            key: value
            for key, value in section.items()
            if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
        }
        nested = {key: value for key, value in section.items() if isinstance(value, dict)}
        lines += [
            f"{key} = {_toml(value)}" for key, value in section.items() if key not in tables and key not in nested
        ]
        for key, value in nested.items():
            lines += ["", f"[{name}.{key}]", *(f"{_toml_key(inner)} = {_toml(each)}" for inner, each in value.items())]
        for key, entries in tables.items():
            for entry in entries:
                lines += ["", f"[[{name}.{key}]]", *(f"{inner} = {_toml(value)}" for inner, value in entry.items())]
    return "\n".join(lines) + "\n"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
