"""Loops load without what they do not use, and leave it for those who do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmforge.compiled import load_without_linear_algebra


def test_numba_loads_without_scipys_linear_algebra_which_others_can_still_import() -> None:
    code = """
import sys
from pathlib import Path

import pytest
from lmforge.tokens.bpe import train_tokenizer
assert train_tokenizer(["ab ab ab"], 258).encode("ab") == [257]
assert not [name for name in sys.modules if name.startswith(("scipy.linalg", "torch"))], "loaded"
import scipy.linalg
assert scipy.linalg.norm([3, 4]) == 5
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_is_loaded_already_stays() -> None:
    import scipy.linalg

    load_without_linear_algebra()
    assert sys.modules["scipy.linalg"] is scipy.linalg


def test_an_index_that_names_a_class_of_another_version_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before.py").write_text(
        "from typing import NamedTuple\nfrom lmforge.compiled import compiled\n"
        "class OLD(NamedTuple):\n    a: int\n@compiled\ndef one(x):\n    return x.a + 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import before

    assert before.one(before.OLD(1)) == 2
    assert list(tmp_path.rglob("*.nbi"))
    text, stamp = (tmp_path / "before.py").read_text(), (tmp_path / "before.py").stat()
    (tmp_path / "before.py").write_text(text.replace("OLD", "NEW"))
    os.utime(tmp_path / "before.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    script = "import before; print(before.one(before.NEW(1)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "2\n", done.stderr[-500:]
