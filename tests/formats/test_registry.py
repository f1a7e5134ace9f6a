"""A format from outside the package: one file, one registration, and `load_any` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.registry import FORMATS, Format
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.tokens.bpe import Tokenizer
from tests.serve.conftest import save_tiny


class JsonFile(Format):
    """Everything in one JSON file, each tensor as a nested list."""

    name = "json-file"

    def detect(self, path: Path) -> bool:
        return path.suffix == ".lmjson"

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); write the file again") from error
        model = GPT(GPTConfig(**content["architecture"]))
        model.load_state_dict({name: torch.tensor(values) for name, values in content["tensors"].items()})
        return LoadedModel(model.eval(), Tokenizer(content["tokenizer"]), path.stem, path)

    def write(self, loaded: LoadedModel, path: Path) -> None:
        tokenizer = path.with_suffix(".tokenizer")
        loaded.tokenizer.save(tokenizer)
        content = {
            "architecture": loaded.config.to_json(),
            "tensors": {name: tensor.tolist() for name, tensor in loaded.model.state_dict().items()},
            "tokenizer": tokenizer.read_text(),
        }
        path.write_text(json.dumps(content))


@pytest.fixture
def registered() -> Iterator[None]:
    """The one line that makes it known; taken back, so that no other test meets it."""
    FORMATS.register("json-file", JsonFile())
    yield
    FORMATS.remove("json-file")


@pytest.mark.usefixtures("registered")
def test_a_toy_format_is_written_and_read(tmp_path: Path) -> None:
    native = load_any(save_tiny(tmp_path / "tiny"))
    FORMATS["json-file"].write(native, tmp_path / "toy.lmjson")
    toy = load_any(tmp_path / "toy.lmjson")
    assert (toy.name, toy.tokenizer.sha256) == ("toy", native.tokenizer.sha256)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(toy.model(tokens), native.model(tokens))
    FORMATS["native"].write(toy, tmp_path / "again")
    with torch.inference_mode():
        assert torch.equal(load_any(tmp_path / "again").model(tokens), native.model(tokens))
    (tmp_path / "toy.lmjson").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_any(tmp_path / "toy.lmjson")


def test_a_format_that_is_only_read_says_so(tmp_path: Path) -> None:
    loaded = load_any(save_tiny(tmp_path / "tiny"))
    with pytest.raises(InputError, match="the format 'transformers' is only read"):
        FORMATS["transformers"].write(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_packages_own_formats_are_there() -> None:
    assert set(FORMATS) == {"native", "exported", "transformers", "gguf", "adapter"}
