"""Registries: parts are there by name, found lazily, never replaced unawares."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmforge import registry
from lmforge.errors import InputError
from lmforge.registry import Registry, Selected


def test_parts_are_found_by_name_in_the_order_of_registration() -> None:
    numbers: Registry[int] = Registry("number")
    numbers.register("two", 2)
    numbers.register("one", 1)
    assert (list(numbers), numbers["one"], len(numbers), "three" in numbers) == (["two", "one"], 1, 2, False)


def test_a_name_is_taken_once() -> None:
    names: Registry[object] = Registry("thing")
    part = names.register("a", object())
    assert names.register("a", part) is part
    with pytest.raises(ValueError, match="thing 'a' is registered already"):
        names.register("a", object())


def test_an_unknown_name_tells_the_known_ones() -> None:
    methods: Registry[int] = Registry("compression method")
    methods.register("quantize", 1)
    with pytest.raises(InputError, match=r"compression method 'quantise' is not known; did you mean 'quantize'\?"):
        methods["quantise"]
    with pytest.raises(InputError, match=r"'z' is not known\. Known: quantize"):
        methods["z"]
    assert (methods.get("z"), methods.get("z", 3), methods.get("quantize")) == (None, 3, 1)


def test_modules_are_imported_when_a_name_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_part.py").write_text("from tests.test_registry import LAZY\nLAZY.register('lazy', 7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    LAZY.register("eager", 1)
    assert LAZY["eager"] == 1
    assert "lazy_part" not in sys.modules
    assert LAZY["lazy"] == 7
    assert list(LAZY) == ["eager", "lazy"]


LAZY: Registry[int] = Registry("part", ("lazy_part",))


def test_installed_plugins_register_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_plugin.py").write_text("from tests.test_registry import OUTSIDE\nOUTSIDE.register('out', 3)\n")
    (tmp_path / "bad_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed = [EntryPoint("good", "good_plugin", registry.ENTRY_POINTS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: installed if group == "lmforge.plugins" else [])
    assert OUTSIDE["out"] == 3
    installed[:] = [EntryPoint("bad", "bad_plugin", registry.ENTRY_POINTS)]
    with pytest.raises(InputError, match=r"plug-in bad \(bad_plugin\): cannot be imported: division by zero"):
        Registry("part")["x"]


OUTSIDE: Registry[int] = Registry("part")


class Round(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: Literal["round"] = "round"
    bits: int = Field(default=8, gt=0)
    note: str | None = None


class Cut(BaseModel):
    method: Literal["cut"] = "cut"


SHAPES: Registry[type[BaseModel]] = Registry("shape")


class Chain(BaseModel):
    steps: tuple[Annotated[BaseModel, Selected(SHAPES, "method")], ...] = ()


class Easy(BaseModel):
    step: Annotated[BaseModel, Selected(SHAPES, "method", default="round")]


SHAPES.register("round", Round)
SHAPES.register("cut", Cut)  # after the class that uses it was made


def test_a_section_is_chosen_by_its_key() -> None:
    chain = Chain.model_validate({"steps": [{"method": "cut"}, {"method": "round", "bits": 4}, Round(bits=2)]})
    assert chain.steps == (Cut(), Round(bits=4), Round(bits=2))
    again = chain.model_dump(mode="json", exclude_none=True)
    assert again == {"steps": [{"method": "cut"}, {"method": "round", "bits": 4}, {"method": "round", "bits": 2}]}
    assert Chain.model_validate(again) == chain
    assert Easy.model_validate({"step": {}}).step == Round()
    assert [each["title"] for each in Chain.model_json_schema()["properties"]["steps"]["items"]["anyOf"]] == [
        "Round",
        "Cut",
    ]


@pytest.mark.parametrize(
    ("step", "location", "kind", "words"),
    [
        ({"method": "rond"}, ("method",), "selected", "one of: round, cut; did you mean 'round'?"),
        ({}, ("method",), "selected", "one of: round, cut"),
        ({"method": "round", "bits": 0}, ("round", "bits"), "greater_than", "greater than 0"),
        ({"method": "round", "bit": 4}, ("round", "bit"), "extra_forbidden", "not permitted"),
        ("round", (), "value_error", "a table is needed"),
        (Easy(step=Round()), (), "value_error", "Easy is not a registered shape"),
    ],
)
def test_what_is_wrong_in_a_section_has_its_place(
    step: object, location: tuple[str, ...], kind: str, words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Chain.model_validate({"steps": [step]})
    (problem,) = caught.value.errors()
    assert (problem["loc"], problem["type"]) == (("steps", 0, *location), kind)
    assert words in problem["msg"]
