"""Building, keeping, refusing: there is always something that multiplies, and it is said what."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.kernels import build


@pytest.fixture(autouse=True)
def anew() -> None:
    build._loaded.cache_clear()


def test_off_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "off")
    assert build.library() is None
    assert build.path_taken() == "torch (LMFORGE_KERNELS=off)"


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "fast")
    with pytest.raises(InputError, match="native, avx2, plain, off"):
        build.library()


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert build.library() is None
    assert "no C++ compiler here" in capsys.readouterr().err
    assert build.path_taken() == "torch (no C++ compiler here)"


def test_a_compiler_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "c++"
    tool.write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CXX", str(tool))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.library() is None
    assert "no such processor" in capsys.readouterr().err
    assert not list((tmp_path / "lmforge" / "kernels").glob("*.so"))
    assert build.path_taken() == "torch (own kernels could not be built)"


def test_a_library_that_cannot_be_loaded_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    monkeypatch.setattr(build, "build", lambda choice: broken)
    assert build.library() is None
    assert "cannot be loaded" in capsys.readouterr().err


def test_what_was_built_is_kept() -> None:
    if build.compiler() is None:
        pytest.skip("no C++ compiler here")
    first = build.build("native")
    assert first is not None
    made = first.stat().st_mtime_ns
    assert build.build("native") == first
    assert first.stat().st_mtime_ns == made
    assert build.path_taken().startswith("own kernels (")
