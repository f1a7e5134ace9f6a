"""A bad batch is survived, and what is to blame is named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.corpus.build import read_documents
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.loader import Batch
from lmforge.train.diagnose import first_non_finite
from lmforge.train.loop import train
from lmforge.train.step import TrainStep
from tests.train.runs import one_rank, poisoned, recipe_of, skipped


@pytest.mark.parametrize(
    ("precision", "spoil", "cause", "layer"),
    [
        ("fp32", lambda x: x * math.nan, "the loss is nan", "output of blocks.1.ff"),
        ("fp16", lambda x: x * 1e9, "the loss is (nan|inf)", "output of blocks.1.ff"),
    ],
    ids=["a batch of NaN", "float16 overflows in the network"],
)
def test_a_bad_batch_is_survived_and_its_cause_named(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    spoil: Any,
    cause: str,
    layer: str,
) -> None:
    recipe = recipe_of(tiny_run, steps=60, checkpoint_every=20, precision=precision)
    clean = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    poisoned(monkeypatch, {30}, spoil)
    hurt = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert hurt["valid_bits_per_byte"] < 1.02 * clean["valid_bits_per_byte"]
    (line,) = skipped(tmp_path / "b")
    assert line["step"] == 31
    assert re.match(cause, line["skipped"])
    assert line["layer"] == layer
    ids = {document["id"] for document in read_documents(tiny_run / "corpus", "train")}
    assert line["documents"]
    assert set(line["documents"]) <= ids
    assert re.search(
        rf"step 31 skipped: {cause}.*documents {re.escape(line['documents'][0])}.*first not finite: {layer}",
        capsys.readouterr().err,
    )


def test_a_hundredfold_loss_is_survived_and_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_run, steps=60, checkpoint_every=20)
    clean = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    real, loss = TrainStep.run, GPT.loss

    def step(self: TrainStep, number: int, batch: Batch) -> dict[str, Any]:
        monkeypatch.setattr(
            GPT, "loss", (lambda *arguments, **named: 100 * loss(*arguments, **named)) if number == 30 else loss
        )
        return real(self, number, batch)

    monkeypatch.setattr(TrainStep, "run", step)
    hurt = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert hurt["valid_bits_per_byte"] < 1.02 * clean["valid_bits_per_byte"]
    (line,) = skipped(tmp_path / "b")
    assert line["step"] == 31
    assert "times that of the last 30 steps" in line["skipped"]
    assert line["documents"]


CONFIG = GPTConfig(vocab_size=20, context=8, layers=2, d_model=8, heads=2, kv_heads=2, d_ff=16)


def network() -> tuple[GPT, torch.Tensor]:
    model = GPT(CONFIG)
    model.initialise(0)
    return model, torch.arange(8)[None]


def test_the_first_layer_is_named() -> None:
    model, x = network()
    loss = lambda: model.loss(x, x)  # noqa: E731
    assert first_non_finite(model, loss) == "nothing, when its rows are computed alone"
    hook = model.blocks[1].ff.up.register_forward_hook(lambda _m, _i, output: output / 0)
    assert first_non_finite(model, loss) == "output of blocks.1.ff.up"
    hook.remove()
    hook = model.blocks[0].attention.out.weight.register_hook(lambda gradient: gradient * math.inf)
    assert first_non_finite(model, loss) == "gradient of blocks.0.attention.out.weight"
    hook.remove()
    assert first_non_finite(model, lambda: model.loss(x, x) * math.nan) == "the loss itself"
    with torch.no_grad():
        model.blocks[0].ff.down.weight[0, 0] = math.inf
    assert first_non_finite(model, loss) == "weights blocks.0.ff.down.weight"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_processes_share_a_network_all_documents_of_the_batch_are_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process can run a row alone there, and none may try: the others would wait for it."""
    with one_rank(recipe_of(tiny_run), tiny_run / "tokens", tmp_path) as run:
        monkeypatch.setattr(type(run.layout), "shares_network", True)
        monkeypatch.setattr(GPT, "forward", None)
        found = run.step.diagnose(0, run.loader.batch(0), "the loss is nan")
    ids = {document["id"] for document in read_documents(tiny_run / "corpus", "train")}
    assert found["layer"] is None
    assert len(found["documents"]) > 3
    assert set(found["documents"]) <= ids
