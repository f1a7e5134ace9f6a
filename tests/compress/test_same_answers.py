"""A compressed model says the same from Python and from the server, saved and exported, in any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from lmforge.compress.method import METHODS, CalibrationBatch, Context
from lmforge.formats.export import export
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import model_tensors, write_model
from lmforge.generate.continuations import Continuations
from lmforge.generate.decode import Sampling
from lmforge.generate.score import token_nats
from lmforge.recipe import parse_recipe
from lmforge.record import atomic_directory
from lmforge.serve.api import create_app
from lmforge.serve.terminal import generate_text
from tests.compress.conftest import context_of
from tests.serve.conftest import save_tiny

PRUNED = {"method": "prune", "kind": "structured", "units": 0.5}
THIN = {"method": "factorize", "ratio": 1.5}
SPARSE = {"method": "sparsify", "share": 0.5}
FEEDBACK = {"method": "quantize", "kind": "weights", "bits": 4, "group": 16, "rounding": "feedback"}
CHAINS: dict[str, list[Mapping[str, Any]]] = {
    "all": [PRUNED, THIN, SPARSE, {**FEEDBACK, "unpack": "kernel"}],
    "8 bits": [SPARSE, {"method": "quantize", "cache_bits": 8}],
    "as numbers": [PRUNED, {**FEEDBACK, "unpack": "load"}],
}


def compressed(folder: Path, steps: list[Mapping[str, Any]]) -> LoadedModel:
    """A small model, compressed, saved, loaded."""
    before = load_any(save_tiny(folder / "tiny"))
    context: Context = context_of(before.model, folder)
    rows = torch.randint(before.config.vocab_size, (8, 24), generator=torch.Generator().manual_seed(0))
    context = dataclasses.replace(context, calibration=CalibrationBatch.of_tokens(rows).split(4))
    model, entries = before.model, []
    for step in parse_recipe({"compress": {"steps": steps}}).compress.steps:
        result = METHODS[step.method].apply(model, step, context)
        model, entries = result.model, [*entries, result.entry]
    with atomic_directory(folder / "small") as directory:
        tokenizer = folder / "tiny" / "tokenizer.json"
        write_model(directory, model.config, model_tensors(model), tokenizer, compression=entries)
    again = load_any(folder / "small")
    assert torch.equal(again.model(rows), model(rows))
    return again


@pytest.mark.parametrize("name", CHAINS)
def test_answers_and_scores_are_the_same_everywhere(tmp_path: Path, name: str) -> None:
    loaded = compressed(tmp_path, CHAINS[name])
    prompts, options = ["def f", "the cat", "n"], {"max_tokens": 12, "temperature": 0}
    here = [generate_text(loaded, prompt, Sampling(**options))["text"] for prompt in prompts]  # type: ignore[arg-type]
    with TestClient(create_app(loaded), "http://localhost") as client:
        for asked, expected in [(prompts, here), *zip(prompts, here, strict=True)]:
            reply = client.post("/v1/completions", json={"model": loaded.name, "prompt": asked, **options}).json()
            assert "choices" in reply, reply
            told = [choice["text"] for choice in sorted(reply["choices"], key=lambda choice: choice["index"])]
            assert told == ([expected] if isinstance(expected, str) else expected)
    tokens = torch.randint(loaded.config.vocab_size, (7, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = token_nats(loaded.model, tokens[:, :-1], tokens[:, 1:])
        alone = torch.cat([token_nats(loaded.model, row[:, :-1], row[:, 1:]) for row in tokens.split(1)])
    assert torch.allclose(together, alone, atol=2e-6, rtol=0)
    items = [[(row[:9].tolist(), row[9 : 9 + n].tolist()) for n in (2, 5)] for row in tokens]
    scorer = Continuations(loaded.model)
    once = dict(scorer.score(items))
    assert [once[n] for n in range(len(items))] == [dict(scorer.score([item]))[0] for item in items]
    if name == "as numbers":
        pytest.importorskip("transformers")
        export(loaded, tmp_path / "exported", "transformers")
        exported = load_any(tmp_path / "exported")
        assert [generate_text(exported, prompt, Sampling(**options))["text"] for prompt in prompts] == here  # type: ignore[arg-type]
        with torch.inference_mode():
            assert torch.allclose(token_nats(exported.model, tokens[:, :-1], tokens[:, 1:]), together, atol=1e-5)
