"""The key reference: every key of a recipe with its type, default and meaning, as docs/reference/recipe.md has it.

    python -m lmforge.recipe.reference docs/reference/recipe.md

Types and defaults come from the schema, meanings from the comments beside the fields: above a field, or on its lines.
So a new key is in the reference as soon as it has its comment. Where a field's default is None, `default: …` in its
comment fills the column of defaults.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from lmforge.recipe.evaluate import TASK_SETTINGS
from lmforge.recipe.registry import COMPRESSION_STEPS
from lmforge.recipe.schema import Recipe
from lmforge.recipe.types import Section, Size

HEAD = """# The recipe's keys

Every key with its type, default and meaning. This page is written by `make docs` from the schema; what a run makes of a
recipe is in [the recipe, the run and its record](run.md), and how parts are used in the [guides](../guides).
A key stated in a recipe replaces its default; `--set section.key=value` replaces both. An unknown key is refused, with
the nearest valid one named.
"""
# the section that a key's tables are chosen from, by the value of one of their keys
REGISTERED: Mapping[str, tuple[str, Mapping[str, type[BaseModel]]]] = {
    "compress.steps": ("method", COMPRESSION_STEPS),
    "evaluate.tasks": ("name", TASK_SETTINGS),
}
SIMPLE = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path", Any: "any"}
SIZE = next(part for part in typing.get_args(Size) if isinstance(part, BeforeValidator))


def comments_beside(section: type[BaseModel]) -> dict[str, str]:
    """Field → the comment above it and on its lines, for the fields that the class itself states."""
    source = textwrap.dedent(inspect.getsource(section))
    lines = source.splitlines()
    comments = {
        token.start[0]: re.sub(r"^#+\s*|\s*(fmt|noqa|type): .*$", "", token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    beside = {}
    for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            numbers = range(first, (node.end_lineno or node.lineno) + 1)
            beside[node.target.id] = " ".join(comments[line] for line in numbers if comments.get(line)).strip()
    return beside


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """Field → its comment, inherited fields included."""
    known: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if base not in (BaseModel, Section) and issubclass(base, BaseModel):
            stated = comments_beside(base)
            known |= {name: text for name, text in stated.items() if text or name not in known}
    return known


def bounds(metadata: list[Any]) -> str:
    """ " above 0", " from 0 to 1" … of what pydantic was told; nothing where there are no bounds."""
    limits: dict[type, Any] = {}
    for part in metadata:
        for each in getattr(part, "metadata", [part]):
            limits |= {
                kind: getattr(each, name)
                for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt"))
                if isinstance(each, kind)
            }
    if Ge in limits and Le in limits:
        return f" from {limits[Ge]:,} to {limits[Le]:,}"
    words = ((Ge, "of at least"), (Gt, "above"), (Le, "of at most"), (Lt, "below"))
    return "".join(f" {word} {limits[kind]:,}" for kind, word in words if kind in limits)


def type_in_words(annotation: Any, metadata: list[Any], path: str) -> str:
    """A field's type as a reader of TOML needs it. `path` is the key's name with its sections."""
    if typing.get_origin(annotation) is Annotated:
        annotation, *more = typing.get_args(annotation)
        metadata = [*more, *metadata]
    if SIZE in metadata:
        return 'bytes, or a text such as `"2GiB"`'
    if path in REGISTERED and typing.get_origin(annotation) is not tuple:
        return f"table with `{REGISTERED[path][0]}`"
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of: {type_in_words(arguments[0], [], path)}"
    if origin is tuple:
        return "[" + ", ".join(type_in_words(part, [], path) for part in arguments) + "]"
    if origin is dict:
        return " → ".join(type_in_words(part, [], path) for part in arguments).join(("table: ", ""))
    if origin in (types.UnionType, typing.Union):
        return "; or ".join(type_in_words(part, [], path) for part in arguments if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return SIMPLE.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds(metadata)


def default_in_words(field: FieldInfo, meaning: str) -> tuple[str, str]:
    """A field's default, and its meaning without what the comment says of the default."""
    if field.is_required():
        return "required", meaning
    value = field.get_default(call_default_factory=True)
    said = re.search(r"[;:,]?\s*\b[Dd]efault: ([^;]+?)(?=;|\.$|$)", meaning)
    if value in (None, (), {}, "") and said:
        return said[1], (meaning[: said.start()] + meaning[said.end() :]).strip(" ;")
    if value in (None, (), {}, ""):
        return "none", meaning
    return f"`{json.dumps(value, default=_plain, ensure_ascii=False)}`", meaning


def _plain(value: Any) -> Any:
    """Sections as tables without their defaults, anything else as text."""
    return value.model_dump(exclude_none=True, exclude_defaults=True) if isinstance(value, BaseModel) else str(value)


def tables_within(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from tables_within(part)


def sections_below(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(heading in TOML, section) of everything inside a section, in the schema's order."""
    for name, field in section.model_fields.items():
        key = f"{path}{name}"
        heading = f"[[{key}]]" if typing.get_origin(field.annotation) is tuple else f"[{key}]"
        if key in REGISTERED:
            selector, registry = REGISTERED[key]
            alike: dict[type[BaseModel], list[str]] = {}  # parts with the same keys share a table
            for part, cls in registry.items():
                if cls.__module__.startswith("lmforge."):  # plug-ins of this machine are no part of lmforge
                    alike.setdefault(cls, []).append(f'"{part}"')
            yield from ((f"{heading} {selector} = {' or '.join(parts)}", cls) for cls, parts in alike.items())
            continue
        inside = list(tables_within(field.annotation))
        for each in inside:
            chosen = each.model_fields.get("method") if len(inside) > 1 else None
            suffix = f" method = {type_in_words(chosen.annotation, [], '').strip('`')}" if chosen else ""
            yield heading + suffix, each
            yield from sections_below(each, f"{key}.")


def table(section: type[BaseModel], path: str) -> str:
    """The keys of a section as a Markdown table; of tables inside it their own tables tell."""
    known = meanings(section)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        inside = list(tables_within(field.annotation))
        if path == "" and inside:
            continue  # a section of its own
        default, meaning = default_in_words(field, known.get(name, ""))
        if inside and typing.get_origin(field.annotation) is not tuple:
            default = default if field.default is None else "as below"
        kind = type_in_words(field.annotation, field.metadata, f"{path}{name}")
        lines.append(f"| `{name}` | {kind} | {default} | {meaning} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/reference/recipe.md."""
    parts = [HEAD, "## At the top\n\n" + table(Recipe, "")]
    for heading, section in sections_below(Recipe, ""):
        level = "##" if "." not in heading.split(" ")[0] else "###"
        path = heading.split(" ")[0].strip("[]") + "."
        title = inspect.cleandoc(section.__doc__ or "")
        parts.append(f"{level} `{heading}`\n\n{title}\n\n{table(section, path)}")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
