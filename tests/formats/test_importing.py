"""Models of other formats become folders of ours, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.importing import import_model
from lmforge.formats.load import load_any
from tests.formats.ggufs import gguf, model, same
from tests.formats.test_transformers import checkpoint

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    loaded = model()
    figures = import_model(str(gguf(tmp_path / "m.gguf", loaded)), tmp_path / "a", 64)
    assert (figures["model_type"], figures["context"], figures["license"]) == ("llama", 64, "mit")
    assert same(loaded, load_any(tmp_path / "a"), 40) == 0
    assert import_model(str(checkpoint(tmp_path / "c", "gpt2")), tmp_path / "b")["model_type"] == "gpt2"


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="exists already"):
        import_model(str(path), tmp_path / "a")
    with pytest.raises(InputError, match="no such model"):
        import_model("nowhere", tmp_path / "b")


def test_blocks_of_a_gguf_file_are_kept_where_that_is_asked(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf", model(), "Q8_0")
    plain, kept = (import_model(str(file), tmp_path / str(blocks), blocks=blocks) for blocks in (False, True))
    assert plain["parameters"] == kept["parameters"]
    sizes = [(tmp_path / str(blocks) / "model.safetensors").stat().st_size for blocks in (False, True)]
    assert sizes[1] < 0.5 * sizes[0]
    with pytest.raises(InputError, match="no GGUF file"):
        import_model(str(checkpoint(tmp_path / "c", "gpt2")), tmp_path / "b", blocks=True)
