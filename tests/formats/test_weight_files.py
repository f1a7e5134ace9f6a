"""Weights in pickles are those in safetensors; a pickle that does more is refused, and not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmforge.errors import InputError
from lmforge.formats import weight_files
from lmforge.formats.transformers import import_model
from lmforge.formats.weight_files import WeightFiles
from lmforge.record import hash_file
from tests.formats.test_transformers import checkpoint


@pytest.mark.parametrize("at_once", [0, 100, 1 << 20])
def test_tensors_are_the_same_however_often_a_file_is_mapped_anew(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "READ_AT_ONCE", at_once)
    tensors = {f"t{number}": torch.randn(5, number + 1) for number in range(6)}
    some, others = dict(list(tensors.items())[:3]), dict(list(tensors.items())[3:])
    save_file(some, tmp_path / "a.safetensors")
    save_file(others, tmp_path / "b.safetensors")
    index = {"weight_map": {**dict.fromkeys(some, "a.safetensors"), **dict.fromkeys(others, "b.safetensors")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = WeightFiles(tmp_path)
    assert set(files.names) == set(tensors)
    for name in ("t5", "t0", "t1", "t4", "t2", "t3", "t0"):
        assert torch.equal(files.read(name), tensors[name])


def test_an_index_that_is_none_and_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights; model\.safetensors or pytorch_model\.bin"):
        WeightFiles(tmp_path)
    for content in ("{", "[]", "{}", '{"weight_map": 3}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json: not an index of weights"):
            WeightFiles(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')
    with pytest.raises(InputError, match=r"other\.safetensors: not readable"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_the_same(tmp_path: Path, parts: int, zipped: bool) -> None:
    folder = checkpoint(tmp_path / "theirs", "llama")
    import_model(folder, tmp_path / "model")
    tensors = {name.removeprefix("model."): each for name, each in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    files = {name: f"pytorch_model-{place % parts}.bin" for place, name in enumerate(tensors)}
    if parts == 1:
        files = dict.fromkeys(tensors, "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    for file in set(files.values()):
        some = {name: each for name, each in tensors.items() if files[name] == file}
        torch.save(some, folder / file, _use_new_zipfile_serialization=zipped)
    import_model(folder, tmp_path / "again")
    assert hash_file(tmp_path / "again" / "model.safetensors") == hash_file(tmp_path / "model" / "model.safetensors")


class Harmful:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [Harmful(), [1, 2], {"a": 1}, b"no pickle"], ids=lambda each: type(each).__name__)
def test_a_pickle_that_is_not_weights_is_refused_and_not_run(
    tmp_path: Path, content: Any, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(tmp_path / "theirs", "llama")
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: (not weights alone|a pickle that holds no tensors)"
    ) as no:
        import_model(folder, tmp_path / "model")
    assert "\n" not in str(no.value)
    assert not (tmp_path / "harmed").exists()
