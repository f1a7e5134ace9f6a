"""A GGUF file becomes the network that it was made from; transformers, reading the same file, says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.gguf import gguf_in, notes_of, read_gguf
from lmforge.formats.gguf_file import GgufFile
from lmforge.formats.load import load_any
from lmforge.formats.native import model_tensors
from tests.conftest import lmforge
from tests.formats.ggufs import SHAPES, gguf, model, same, without
from tests.tokens.test_tokenizer_json import END

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_becomes_the_network_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    loaded = model(name)
    back = load_any(gguf(tmp_path / "m.gguf", loaded))
    own, theirs = model_tensors(loaded.model), model_tensors(back.model)
    assert own.keys() == theirs.keys()
    assert all(torch.allclose(own[each], theirs[each], atol=1e-6) for each in own)
    assert same(loaded, back) < 1e-4
    assert back.tokenizer.encode("hello world") == loaded.tokenizer.encode("hello world")


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_transformers_reads_the_same_logits_from_the_file(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an optional extra, is not installed")
    # for GPT-2 they take the context and the width of its feed-forward part from their defaults
    changes = {"context": 1024, "d_ff": 256} if name == "gpt2" else {}
    gguf(tmp_path / "m.gguf", model(name, **changes))
    back = read_gguf(tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.arange(100)[None] % END
    with torch.no_grad():
        assert float((theirs(ids).logits - back.model(ids)).abs().max()) < 1e-3


def test_notes_tell_licence_source_and_types(tmp_path: Path) -> None:
    notes = read_gguf(gguf(tmp_path / "m.gguf", model(), "Q8_0")).notes
    assert notes["license"] == "mit"
    assert "a test" in notes["source"]
    assert notes["quantised"]["Q8_0"] > notes["quantised"].get("F32", 0)
    assert notes_of(GgufFile(tmp_path / "m.gguf")) == notes


def test_a_second_copy_of_a_tied_matrix_gives_way_to_the_finer(tmp_path: Path) -> None:
    import gguf as package

    tied = model("llama-tied")
    two = model("llama", rope_base=10_000.0)
    two.model.load_state_dict({**tied.model.state_dict(), "head.weight": tied.model.embed.weight})  # type: ignore[union-attr]
    path = gguf(tmp_path / "two.gguf", two)
    file = GgufFile(path)
    coarse = package.quants.quantize(file.tensor("token_embd.weight").numpy(), package.GGMLQuantizationType.Q4_0)
    result = tmp_path / "copy.gguf"
    writer = package.GGUFWriter(result, "llama")
    from lmforge.formats.gguf_write import _add

    for key, value in file.metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name in file.tensors:
        if name == "token_embd.weight":
            writer.add_tensor(name, coarse, raw_dtype=package.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, file.tensor(name).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    back = read_gguf(result)
    assert back.config.tied
    assert "output.weight (F32)" in back.notes["tied"]
    assert same(tied, back) < 1e-5


def test_matrices_of_their_own_stay_apart(tmp_path: Path) -> None:
    back = read_gguf(gguf(tmp_path / "m.gguf", model("llama")))
    assert not back.config.tied
    assert "tied" not in back.notes


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    assert gguf_in(tmp_path) == path
    assert load_any(tmp_path).name == "m"
    (tmp_path / "other.gguf").write_bytes(path.read_bytes())
    assert gguf_in(tmp_path) is None


def test_an_unknown_architecture_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    with pytest.raises(InputError, match=r"^[^\n]*general.architecture = 'mamba'[^\n]*$"):
        read_gguf(without(path, **{"general.architecture": "mamba"}))
    with pytest.raises(InputError, match=r"^[^\n]*no tensor [^\n]*mlp.down_proj.weight[^\n]*$"):
        read_gguf(without(path, tensors=("blk.1.ffn_down.weight",)))
    with pytest.raises(InputError, match=r"no llama.block_count"):
        read_gguf(without(path, "llama.block_count"))


def test_vocabulary_and_embedding_of_different_size_are_named(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    tokens = GgufFile(path).metadata["tokenizer.ggml.tokens"]
    more = {"tokenizer.ggml.tokens": [*tokens, "zzz"], "tokenizer.ggml.token_type": [1] * (len(tokens) + 1)}
    bad = without(path, "tokenizer.huggingface.json", **more)
    with pytest.raises(InputError, match=f"{END + 1} rows for the {END + 2} tokens"):
        read_gguf(bad)


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    info = GgufFile(path).tensors["blk.0.attn_q.weight"]
    with path.open("r+b") as file:
        file.seek(info.offset + 8)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight.*NaN"):
        read_gguf(path)


def test_the_commands_read_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return lmforge(capsys, monkeypatch, *map(str, arguments))

    path = gguf(tmp_path / "m.gguf", model())
    assert run("import", path, tmp_path / "native", "--context", 64, "--json")[0] == 0
    native = load_any(tmp_path / "native")
    assert (native.context, native.notes["license"]) == (64, "mit")
    assert run("generate", path, "--prompt", "hello", "--max-tokens", 4, "--json")[0] == 0
    (tmp_path / "broken.gguf").write_bytes(b"GGML" + path.read_bytes()[4:])
    status, _, said = run("import", tmp_path / "broken.gguf", tmp_path / "other")
    assert status == 2
    assert said.count("\n") == 1
    assert not (tmp_path / "other").exists()
