"""llama.cpp's answers beside ours: how they are matched, and what it says where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.formats.gguf import read_gguf
from lmforge.formats.llama_cpp import compare_with_llama_cpp, is_installed, placed
from tests.formats.ggufs import SHAPES, gguf, model


def test_steps_are_matched_where_there_is_no_doubt() -> None:
    told = [{"id": 5}, {"id": 7}]
    assert [at for at, _ in placed([5, 6, 7], told)] == [0, 2]
    assert [at for at, _ in placed([5, 5, 7], told)] == [2]  # 5 may be either
    assert placed([6, 7], told) == []


@pytest.mark.skipif(not is_installed(), reason="llama.cpp (xllamacpp) is not installed")
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_says_the_same(tmp_path: Path, name: str) -> None:
    path = gguf(tmp_path / "m.gguf", model(name))
    report = compare_with_llama_cpp(read_gguf(path), path, None)
    said, of = report["llama.cpp"].split(" greedy")[0].split(" of ")
    assert said == of
