"""CONTRIBUTING.md's parts from outside the package work as they stand there: one file, one registration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmforge.compress import chain, measure
from lmforge.compress.method import METHODS
from lmforge.formats.load import load_any
from lmforge.formats.registry import FORMATS, RESTORERS
from lmforge.recipe import parse_recipe
from lmforge.recipe.registry import COMPRESSION_STEPS
from tests.compress.test_chain import drawn
from tests.serve.conftest import save_tiny

BLOCKS = re.findall(
    r"```python\n# (\w+)\.py\n(.*?)```", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), re.S
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each block run as the file that it says it is; what it registered is taken back."""
    registries = (METHODS, COMPRESSION_STEPS, RESTORERS, FORMATS)
    before = [set(registry) for registry in registries]
    for name, code in BLOCKS:
        exec(compile(code, f"{name}.py", "exec", dont_inherit=True), {"__name__": name})
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            registry.remove(name)


@pytest.mark.usefixtures("files")
def test_the_method_runs_in_a_chain_within_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.measure
    monkeypatch.setattr(chain, "measure", lambda models: whole(models, seconds=0.2))
    monkeypatch.setattr(chain, "peak_memory", lambda directory: None)
    tiny = save_tiny(tmp_path / "tiny")
    model = load_any(tiny).model

    def evaluate(smaller: torch.nn.Module) -> dict[str, float]:
        changed = sum(not torch.equal(a, b) for a, b in zip(smaller.parameters(), model.parameters(), strict=True))
        return {"bits_per_byte": 1 + 0.01 * changed}

    steps = [{"method": "round", "bits": 3}, {"method": "quantize"}]
    chain.compress(
        parse_recipe({"compress": {"steps": steps}}),
        tiny,
        tmp_path / "a",
        drawn(model.config),
        lambda _: {"bits_per_byte": 1.0},
    )
    assert load_any(tmp_path / "a").methods == ("round", "quantize")
    recipe = parse_recipe({"compress": {"steps": steps[:1], "budget": 0.021}})
    report = chain.compress(recipe, tiny, tmp_path / "b", drawn(model.config), evaluate)
    assert report["steps"][1]["bits_per_byte"] == 1.02
    changed = [
        n for n, p in load_any(tmp_path / "b").model.named_parameters() if not torch.equal(p, model.get_parameter(n))
    ]
    assert changed == [name for name in METHODS["round"].units(model, recipe.compress.steps[0]) if name in changed]
    assert len(changed) == 2


@pytest.mark.usefixtures("files")
def test_the_format_is_read(tmp_path: Path) -> None:
    native = load_any(save_tiny(tmp_path / "tiny"))
    (tmp_path / "theirs").mkdir()
    torch.save(
        {"config": native.config.to_json(), "state": native.model.state_dict()}, tmp_path / "theirs" / "state.pt"
    )
    native.tokenizer.save(tmp_path / "theirs" / "tokenizer.json")
    theirs = load_any(tmp_path / "theirs")
    with torch.inference_mode():
        assert torch.equal(theirs.model(torch.arange(9)[None]), native.model(torch.arange(9)[None]))


def test_both_parts_are_shown() -> None:
    assert [name for name, _ in BLOCKS] == ["round", "state_dict"]
