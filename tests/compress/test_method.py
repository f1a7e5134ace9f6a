"""A compression method from outside the package: one file, one registration; used from a recipe's steps in a chain,
with a budget, saved, and loaded by whoever asks for a model."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lmforge.compress import chain, measure
from lmforge.compress.method import METHODS, CalibrationBatch, Compressed, Context, Method, register
from lmforge.errors import InputError
from lmforge.formats.load import load_any
from lmforge.formats.registry import RESTORERS
from lmforge.model.gpt import GPT
from lmforge.recipe import CompressStep, load_recipe, parse_recipe, to_toml
from lmforge.recipe.registry import COMPRESSION_STEPS
from tests.compress.test_chain import TINY, batch, drawn
from tests.serve.conftest import save_tiny


class Halved(nn.Module):
    """A linear layer without bias whose matrix is stored in half precision."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("stored", weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.stored.float().t()

    def macs_per_token(self) -> int:
        return self.stored.numel()


class HalfStep(CompressStep):
    """Matrices in half precision."""

    method: Literal["half"] = "half"
    digits: int = Field(default=10, gt=0)  # of the fraction


class Half(Method[HalfStep]):
    name = "half"
    settings = HalfStep

    def units(self, model: GPT, settings: HalfStep) -> Sequence[str]:
        return [name for name, module in model.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)]

    def apply(self, model: GPT, settings: HalfStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        assert all(isinstance(each, CalibrationBatch) for each in context.calibration)
        assert context.teacher.config == model.config
        assert context.draw(3).inputs.shape == context.draw(0).inputs.shape
        context.folder.mkdir(parents=True, exist_ok=True)
        (context.folder / "state").write_text("kept while the step works")
        result = copy.deepcopy(model).requires_grad_(False)
        names = [name for name in self.units(result, settings) if name not in kept]
        for name in names:
            result.set_submodule(name, Halved(result.get_parameter(f"{name}.weight").half()))
        return Compressed(result, {"method": "half", "names": names}, {"seed": context.seed})

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        for name in entry["names"]:
            model.set_submodule(name, Halved(tensors[f"{name}.stored"]))
        return model.requires_grad_(False)


class HalfInPlace(Half):
    """One for which applying anew would be dear: it puts layers back."""

    name = "half_in_place"

    class Step(HalfStep):
        method: Literal["half_in_place"] = "half_in_place"

    settings = Step

    def give_back(
        self, before: GPT, result: Compressed, units: Collection[str], settings: HalfStep, context: Context
    ) -> Compressed:
        model = copy.deepcopy(result.model)
        for name in units:
            model.set_submodule(name, copy.deepcopy(before.get_submodule(name)))
        names = [name for name in result.entry["names"] if name not in units]
        return Compressed(model, {"method": "half", "names": names}, result.details)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one line that makes a method known; taken back, so that no other test meets it."""
    whole = measure.measure
    monkeypatch.setattr(chain, "measure", lambda models: whole(models, seconds=0.2))
    monkeypatch.setattr(chain, "peak_memory", lambda directory: None)
    register(Half())
    register(HalfInPlace())
    yield
    for name in ("half", "half_in_place"):
        for registry in (METHODS, COMPRESSION_STEPS, RESTORERS):
            registry.remove(name)


def halved(model: GPT) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Halved)]


RECIPE = """
[[compress.steps]]
method = "half"
digits = 9

[[compress.steps]]
method = "quantize"
"""


def test_a_toy_method_in_a_chain_is_saved_and_loaded(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.compress.steps[0] == HalfStep(digits=9)
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe
    model_dir = save_tiny(tmp_path / "tiny")
    config = load_any(model_dir).config

    def evaluate(model: GPT) -> dict[str, float]:
        return {"bits_per_byte": 1.0}

    report = chain.compress(recipe, model_dir, tmp_path / "out", drawn(config), evaluate)
    assert [step["name"] for step in report["steps"]] == ["original", "half", "quantize"]
    assert report["steps"][1]["seed"] == recipe.seed
    assert len({step["macs_per_token"] for step in report["steps"]}) == 1
    assert report["steps"][1]["file_bytes"] < report["steps"][0]["file_bytes"]
    assert not (tmp_path / ".out.work").exists()
    loaded = load_any(tmp_path / "out")
    assert loaded.methods == ("half", "quantize")
    assert len(halved(loaded.model)) == 8
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        reached, true = loaded.model(tokens), load_any(model_dir).model(tokens)
    assert 0 < (reached - true).norm() < 0.1 * true.norm()


@pytest.mark.parametrize("name", ["half", "half_in_place"])
def test_a_budget_gives_back_the_units_of_any_method(tmp_path: Path, name: str) -> None:
    model_dir = save_tiny(tmp_path / "tiny")

    def evaluate(model: GPT) -> dict[str, float]:
        return {"bits_per_byte": 1 + 0.01 * len(halved(model))}

    recipe = parse_recipe({"compress": {"steps": [{"method": name}], "budget": 0.055}})
    report = chain.compress(recipe, model_dir, tmp_path / "out", drawn(load_any(model_dir).config), evaluate)
    step = report["steps"][-1]
    assert len(step["sensitivity"]) == 8
    assert set(step["entry"]["names"]) == set(list(step["sensitivity"])[3:])  # the three dearest are back
    assert halved(load_any(tmp_path / "out").model) == step["entry"]["names"]


def test_settings_are_checked_with_the_recipe() -> None:
    with pytest.raises(InputError, match=r"compress\.steps\.0\.half\.digits: Input should be greater than 0"):
        parse_recipe({"compress": {"steps": [{"method": "half", "digits": 0}]}})
    with pytest.raises(InputError, match=r"compress\.steps\.0\.half\.digit: unknown key .* did you mean 'digits'"):
        parse_recipe({"compress": {"steps": [{"method": "half", "digit": 3}]}})
    with pytest.raises(
        InputError, match=r"compress\.steps\.0\.method: .*one of: quantize, .*half.*did you mean 'half'"
    ):
        parse_recipe({"compress": {"steps": [{"method": "halve"}]}})


def test_a_section_of_another_name_is_no_methods_section() -> None:
    class Wrong(Half):
        name = "wrong"

    with pytest.raises(ValueError, match="its default has to be 'wrong'"):
        register(Wrong())
    assert "wrong" not in METHODS


def test_loading_without_the_method_names_it(tmp_path: Path) -> None:
    model_dir = save_tiny(tmp_path / "tiny")
    recipe = parse_recipe({"compress": {"steps": [{"method": "half"}]}})
    chain.compress(
        recipe, model_dir, tmp_path / "out", drawn(load_any(model_dir).config), lambda model: {"bits_per_byte": 1.0}
    )
    method = RESTORERS.remove("half")
    with pytest.raises(InputError, match="compression method 'half' is not known; install what brings it"):
        load_any(tmp_path / "out")
    RESTORERS.register("half", method)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["compression"][0]["method"] == "half"


def test_rows_in_which_nothing_counts_are_no_calibration() -> None:
    rows = batch(TINY, 6)
    rows.targets[[0, 3]] = -1
    packed = CalibrationBatch.of_rows(rows._replace(documents=np.zeros((6, TINY.context), np.int32)))
    (some,) = packed.of_which_some_count().split(4)
    assert some.inputs.tolist() == rows.inputs[[1, 2, 4, 5]].tolist()
    assert some.documents is not None
    assert some.documents.shape == (4, TINY.context)
    rows.targets[:] = -1
    nothing = CalibrationBatch.of_rows(rows)
    assert [len(each.inputs) for each in nothing.of_which_some_count().split(4)] == [4, 2]
