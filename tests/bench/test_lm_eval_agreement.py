"""A model trained here and exported scores the same in the harness's own backend, item by item."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
from bench.quality.lm_eval_agreement import compared, peer

from lmforge.evaluate.definitions import DEFINITIONS
from lmforge.evaluate.engine import prepare
from lmforge.formats.load import load_any
from lmforge.generate.continuations import Continuations
from tests.evaluate.conftest import base, save  # noqa: F401
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.test_harness_model import network


@pytest.mark.slow
def test_an_exported_model_agrees(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    save(network(), tmp_path / "model", base)
    rows = [{"goal": f"open {n}", "sol1": "turn it", "sol2": "eat it now", "label": n % 2} for n in range(8)]
    pairs = [{"sentence_good": f"The man {n} goes.", "sentence_bad": f"The man {n} go.", "UID": "a"} for n in range(8)]
    root = shared_packs(tmp_path, {"piqa": {"validation.jsonl": rows}, "blimp": {"blimp.jsonl": pairs}})
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    loaded = load_any(tmp_path / "model")
    ways = {"32": Continuations(loaded.model.eval(), 4096), "1": Continuations(loaded.model, 1)}
    theirs = peer(loaded, tmp_path)
    for name in ("piqa", "blimp"):
        row = compared(prepare(DEFINITIONS[name], tmp_path / name), loaded, theirs, ways)
        assert row["same_items"] == row["items"] == 8
        assert row["largest_difference_nats"] < 1e-3
        assert row["bits_equal_batch_1_and_32"]
        assert row["bits_equal_reversed"]
