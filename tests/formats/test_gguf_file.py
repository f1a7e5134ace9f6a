"""Heads of GGUF files, every type of block, and files that are cut or damaged."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.formats.gguf_file import READABLE, GgufFile, is_gguf
from tests.formats.ggufs import gguf as written
from tests.formats.ggufs import model

gguf = pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")
METADATA = {"a.number": 7, "a.text": "wörter", "a.list": ["x", "ÿ"], "a.numbers": [1, 2, 3], "a.flag": True}


def file_of(path: Path, blocks: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A file with METADATA and tensors {name: (type, the bytes of its rows)}."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_string("a.text", "wörter")
    writer.add_array("a.list", ["x", "ÿ"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_bool("a.flag", True)
    for name, (kind, data) in blocks.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Rows of random blocks of a type; scales are small finite numbers."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    if kind in ("F32", "F16"):
        return rng.standard_normal((rows, block * blocks * 32)).astype(np.float32 if kind == "F32" else np.float16)
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    if kind == "BF16":
        return (
            (rng.standard_normal((rows, 32 * blocks)).astype(np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(np.uint8)
        )
    half = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    at = {
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q6_K": (208,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q4_1": (0, 2),
        "Q5_1": (0, 2),
    }
    for place in at.get(kind, (0,)):
        data[:, :, place : place + 2] = half
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", READABLE)
def test_each_type_is_dequantised_as_the_package_does(tmp_path: Path, kind: str) -> None:
    data = blocks_of(kind, 3, 2, 11)
    file = GgufFile(file_of(tmp_path / "m.gguf", {"w": (kind, data)}))
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]) if kind != "F32" else data
    assert torch.equal(file.tensor("w"), torch.from_numpy(np.array(expected, dtype=np.float32)))
    assert torch.equal(file.tensor("w", 1, 1), file.tensor("w")[1:2])


def test_the_head_is_read_whole(tmp_path: Path) -> None:
    path = file_of(tmp_path / "m.gguf", {"w": ("F32", np.zeros((2, 32), np.float32))})
    file = GgufFile(path)
    assert {key: file.metadata[key] for key in METADATA} == METADATA
    assert file.architecture == "llama"
    assert file.tensors["w"].shape == (2, 32)
    reader = gguf.GGUFReader(path)
    assert [(each.name, int(each.data_offset), int(each.n_bytes)) for each in reader.tensors] == [
        (info.name, info.offset, info.size) for info in file.tensors.values()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "m.gguf", model())


@settings(max_examples=60)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_refused_in_one_line(whole: Path, share: float) -> None:
    data = whole.read_bytes()
    cut = whole.with_name("cut.gguf")
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError) as caught:
        GgufFile(cut)
    assert "\n" not in str(caught.value)


@settings(max_examples=100)
@given(at=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_changed_byte_of_the_head_gives_a_head_or_one_line(whole: Path, at: int, value: int) -> None:
    data = bytearray(whole.read_bytes())
    data[at] = value
    other = whole.with_name("changed.gguf")
    other.write_bytes(data)
    said = ""
    with contextlib.suppress(InputError):
        try:
            GgufFile(other)
        except InputError as error:
            said = str(error)
            raise
    assert "\n" not in said


def test_other_files_and_versions_are_named(tmp_path: Path, whole: Path) -> None:
    data = whole.read_bytes()
    for content, said in (
        (b"GGML" + data[4:], "begins with b'GGML'"),
        (data[:4] + (1).to_bytes(4, "little") + data[8:], "version 1"),
        (data[:4] + (3).to_bytes(4, "big") + data[8:], "big-endian"),
    ):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        assert is_gguf(path)
        with pytest.raises(InputError, match=said):
            GgufFile(path)
    assert not is_gguf(tmp_path)
    with pytest.raises(InputError, match="no tensor other"):
        GgufFile(whole).tensor("other")
