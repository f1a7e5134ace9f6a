"""What is exported appears whole, after it proved itself, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.export import EXPORTERS, Exporter, Stepwise, compare, export, final_place
from lmforge.formats.loaded import LoadedModel
from tests.formats.exporting import small


class Toy(Exporter):
    """Writes a file and runs our own network, off by `error` at one logit."""

    name = "toy"

    def __init__(self, error: float = 0.0, at: int = 0) -> None:
        self.error, self.at, self.seen = error, at, Path()

    def write(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        path.mkdir()
        (path / "numbers").write_bytes(bytes(100))
        self.seen = path
        return {"word": options.get("word", "none")}

    def open(self, path: Path, loaded: LoadedModel) -> Off:
        assert (path / "numbers").is_file()
        return Off(loaded, self.error, self.at)


class Off(Stepwise):
    def __init__(self, loaded: LoadedModel, error: float, at: int) -> None:
        self.loaded, self.error, self.at = loaded, error, at

    def logits(self, tokens: Sequence[int]) -> Tensor:
        logits = self.loaded.model(torch.tensor([tokens]))[0].clone()
        logits[:, self.at] += self.error
        return logits


@pytest.fixture
def toy() -> Any:
    exporters = []

    def make(**faults: Any) -> Toy:
        exporters.append(EXPORTERS.register("toy", Toy(**faults)))
        return exporters[-1]  # type: ignore[return-value]

    yield make
    if exporters:
        EXPORTERS.remove("toy")


def test_it_appears_with_its_report(tmp_path: Path, toy: Any) -> None:
    exporter = toy()
    report = export(small(), tmp_path / "deep" / "out", "toy", word="given")
    assert report["to"] == "toy"
    assert report["word"] == "given"
    assert report["bytes"] == 100
    assert report["logits_difference"] == 0
    assert report["greedy_tokens_equal"] == 32
    assert final_place(exporter.seen) == tmp_path / "deep" / "out"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [0.01, float("nan"), -0.01])
def test_what_says_something_else_leaves_nothing(tmp_path: Path, toy: Any, error: float) -> None:
    toy(error=error, at=7)
    with pytest.raises(LmforgeError, match="logits differ"):
        export(small(), tmp_path / "out", "toy")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_greedy_token_is_refused_and_a_tie_is_not() -> None:
    loaded = small()

    class Stubborn(Off):
        def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
            right = super().greedy(tokens, count)
            return [*right[:3], (right[3] + 1) % 280, *right[4:]]

    with pytest.raises(LmforgeError, match="greedy token 4"):
        compare(loaded, Stubborn(loaded, 0.0, 0))
    assert compare(loaded, Stubborn(loaded, 0.0, 0), tolerance=1e3)["greedy_tokens_equal"] == 3


def test_what_is_there_stays(tmp_path: Path, toy: Any) -> None:
    toy()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        export(small(), tmp_path / "out", "toy")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy()
    monkeypatch.setattr(Toy, "packages", ("torch", "no_such_package"))
    with pytest.raises(InputError, match=r"no_such_package not installed.*lmforge\[export\]"):
        export(small(), tmp_path / "out", "toy")


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        export(small(), tmp_path / "out", "onnxx")
