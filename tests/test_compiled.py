"""Loops load without what they do not use, and leave it for those who do."""

import subprocess
import sys

from lmforge.compiled import load_without_linear_algebra


def test_numba_loads_without_scipys_linear_algebra_which_others_can_still_import() -> None:
    code = """
import sys
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
