"""What is exported as GGUF says the same when it is read back, by us and, where it is installed, by llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.export import export
from lmforge.formats.gguf import read_gguf
from lmforge.formats.gguf_file import GgufFile
from lmforge.formats.gguf_write import LLAMA, TYPES, architecture_for, largest_change
from lmforge.formats.native import model_tensors
from lmforge.train.select import hash_weights
from tests.formats.ggufs import model

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


def test_weights_come_back_with_their_hash(tmp_path: Path) -> None:
    loaded = model()
    report = export(loaded, tmp_path / "m.gguf", "gguf")
    back = read_gguf(tmp_path / "m.gguf")
    assert hash_weights(model_tensors(back.model)) == hash_weights(model_tensors(loaded.model))
    assert back.tokenizer.sha256 == loaded.tokenizer.sha256
    assert back.notes["license"] == "mit"
    assert report["greedy_tokens_equal"] == 32
    assert report["bytes"] == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize("type", TYPES[1:])
def test_rounded_types_are_what_they_are_called(tmp_path: Path, type: str) -> None:
    loaded = model()
    report = export(loaded, tmp_path / "m.gguf", "gguf", type=type)
    types = {info.type for name, info in GgufFile(tmp_path / "m.gguf").tensors.items() if "norm" not in name}
    assert types == ({type, "Q8_0"} if type.startswith("Q4") else {type})
    assert 0 < report["logits_changed_by_rounding"] < (0.5 if type.startswith("Q4") else 0.05)
    again = read_gguf(tmp_path / "m.gguf")
    export(again, tmp_path / "again.gguf", "gguf", type=type)
    assert largest_change(again, read_gguf(tmp_path / "again.gguf")) is None  # rounding what is rounded changes nothing


def test_a_network_that_llama_cpp_does_not_run_says_which_keys(tmp_path: Path) -> None:
    other = model("llama", activation="relu2", qk_norm=True, norm="layernorm", ngram_rows=64)
    with pytest.raises(InputError) as caught:
        export(other, tmp_path / "m.gguf", "gguf")
    said = str(caught.value)
    assert "\n" not in said
    assert 'activation = "swiglu"' in said
    assert 'norm = "rmsnorm"' in said
    assert "ngram_rows = 0" in said
    assert not list(tmp_path.iterdir())
    architecture_for(model("llama", **LLAMA).config)  # and with these keys it does


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--type Q3"):
        export(model(), tmp_path / "m.gguf", "gguf", type="Q3")


def test_a_change_is_seen() -> None:
    one, other = model(), model()
    assert largest_change(one, other) is None
    with torch.no_grad():
        other.model.blocks[1].ff.down.weight[0, 0] += 1  # type: ignore[union-attr, index]
    name, size = largest_change(one, other) or ("", 0.0)
    assert name == "blocks.1.ff.down.weight"
    assert size == pytest.approx(1, abs=1e-5)
