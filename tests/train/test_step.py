"""One update: micro-batches and replicas that change nothing, overflow, what the host waits for, memory."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmforge.corpus.build import read_documents
from lmforge.model.config import network_of
from lmforge.model.gpt import GPT
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import hash_file
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.documents import Encoded
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import FORMAT
from lmforge.tokens.writer import Names, TokenWriter
from lmforge.train import step as step_module
from lmforge.train.journal import read_lines
from lmforge.train.loop import train
from tests.tokens.conftest import write_documents
from tests.train.runs import gradients, one_rank, poisoned, ragged, recipe_of, same, skipped


def test_micro_batches_and_replicas_change_nothing(tiny_run: Path, tmp_path: Path) -> None:
    """16 ragged, partly masked sequences as 1×16, 4×4 and 16×1."""
    recipe = recipe_of(tiny_run)
    whole = gradients(recipe, tiny_run / "tokens", tmp_path, 16 * 32, ragged())
    assert all(gradient.norm() > 0 for gradient in whole)
    for micro in (4 * 32, 32, 96):
        assert same(whole, gradients(recipe, tiny_run / "tokens", tmp_path, micro, ragged()))
    assert same(whole, gradients(recipe, tiny_run / "tokens", tmp_path, 96, ragged(), threads=2))
    model = GPT(network_of(recipe, Tokenizer.load(tiny_run / "tokens" / "tokenizer.json").vocab_size))
    model.initialise(recipe.seed)
    inputs, targets, *_ = ragged()
    (model.loss(torch.from_numpy(inputs), torch.from_numpy(targets)) / int((targets >= 0).sum())).backward()
    assert same(whole, [parameter.grad for parameter in model.parameters()])  # the mean over the tokens that count


@pytest.fixture(scope="module")
def masked(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's texts as shards of which a part counts: in each document another share of its characters, in some
    nothing."""
    out = tmp_path_factory.mktemp("masked")
    splits = {}
    for split in ("train", "valid", "test"):
        splits[split] = [*read_documents(tiny_run / "corpus", split)]
        for number, document in enumerate(splits[split]):
            document["meta"] = {"loss_spans": [[0, len(document["text"]) * (number % 4) // 4]]} if number % 5 else {}
    write_documents(out / "corpus", splits)
    build_tokens(load_recipe(tiny_run / "recipe.toml"), out / "corpus", out / "tokens")
    return out / "tokens"


@pytest.mark.parametrize("packing", ["ring", "best_fit"])
def test_micro_batches_change_nothing_where_few_tokens_count(
    masked: Path,
    tiny_run: Path,
    tmp_path: Path,
    packing: str,
) -> None:
    """The mean is over the tokens that count in the whole batch, however unevenly they fall into micro-batches and
    ranks."""
    recipe = load_recipe(tiny_run / "recipe.toml", [f"tokens.packing={packing}"])
    whole = gradients(recipe, masked, tmp_path, 256)
    for micro in (32, 64, 96):
        assert same(whole, gradients(recipe, masked, tmp_path, micro))
    with one_rank(recipe, masked, tmp_path) as run:
        batch = run.loader.batch(0)
        counted = int((batch.targets >= 0).sum())
        assert 0 < counted < 0.8 * batch.targets.size
        documents = None if batch.documents is None else torch.from_numpy(batch.documents)
        with torch.no_grad():
            nats = run.model.loss(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), documents)
        assert run.step.run(0, batch)["loss"] == pytest.approx(float(nats) / counted, rel=1e-5)


def test_gradients_that_overflow_cost_nothing_but_a_smaller_scale(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        poisoned(patch, {5}, _Steep.apply)
        hurt = train(recipe_of(tiny_run, precision="fp16"), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert not skipped(tmp_path / "b")
    scales = [line["loss_scale"] for line in read_lines(tmp_path / "b" / "metrics.jsonl") if "loss_scale" in line]
    assert scales[0] == 2.0**16
    assert scales[5] < 2.0**16
    assert scales[-1] == scales[5]
    assert re.search(
        r"step 6: float16 overflows at a loss scale of 65536, first in the gradient of blocks\.",
        capsys.readouterr().err,
    )
    assert hurt["valid_bits_per_byte"] == pytest.approx(clean["valid_bits_per_byte"], rel=0.01)


class _Steep(torch.autograd.Function):
    """The identity, whose gradient is infinite where it exceeds a third of the largest it was at first: a quarter of
    the scale helps."""

    limit: torch.Tensor | None = None

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        if _Steep.limit is None:
            _Steep.limit = gradient.abs().max() / 3
        return torch.where(gradient.abs() > _Steep.limit, math.inf, gradient)


class Reads(TorchDispatchMode):
    """Counts how often the host reads a number of the device, and so waits for it."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*arguments, **(more or {}))


def test_the_host_waits_for_the_device_by_the_step_and_not_by_the_micro_batch(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the loss asks whether all tokens count on a CPU alone
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    reads_by_size, copies = [], []
    real = step_module.to_host
    monkeypatch.setattr(step_module, "to_host", lambda *numbers: copies.append(len(numbers)) or real(*numbers))
    for micro in (256, 32):
        recipe = recipe_of(tiny_run, micro_batch_tokens=micro, optimizer="muon")
        with one_rank(recipe, tiny_run / "tokens", tmp_path / str(micro)) as run:
            batch = run.loader.batch(0)
            with Reads() as reads:
                run.step.run(0, batch)
        reads_by_size.append(reads.count)
    # The loss and the gradient's norm, which decide whether there is an update at all, in one copy; no other number of
    # the device is read.
    assert copies == [2, 2]
    assert reads_by_size == [0, 0]


@pytest.mark.slow
def test_a_batch_of_3_200_000_tokens_in_flat_memory(tmp_path: Path) -> None:
    """One step at exactly that size, by accumulation; what is resident while the last micro-batches are computed is
    what was with the first."""
    context, tokens = 250, 3_200_000
    rng = np.random.default_rng(0)
    folder = tmp_path / "tokens"
    folder.mkdir()
    train_tokenizer([], 257).save(folder / "tokenizer.json")
    splits, names = {}, Names()
    for split, documents in (("train", 700), ("valid", 4), ("test", 4)):
        writer = TokenWriter(folder, split, 257, names, grouped=split == "train")
        writer.add(
            [
                Encoded(np.concatenate(([0], rng.integers(1, 257, 4999))).astype("<u2"), None, 4999, "s", "code")
                for _ in range(documents)
            ]
        )
        writer.close()
        splits[split] = {
            "tokens": writer.tokens,
            "documents": writer.documents,
            "bytes": writer.bytes,
            "files": writer.files,
        }
    (folder / "index.json").write_text(
        json.dumps(
            {
                "format": FORMAT,
                "vocab_size": 257,
                "dtype": "uint16",
                "tokenizer_sha256": hash_file(folder / "tokenizer.json"),
                "sources": [*names.sources],
                "genres": [*names.genres],
                "splits": splits,
            }
        )
    )
    recipe = Recipe.model_validate(
        {
            "tokens": {"context": context},
            "model": {"layers": 1, "d_model": 16, "heads": 2},
            "train": {
                "steps": 1,
                "batch_tokens": tokens,
                "micro_batch_tokens": 40 * context,
                "threads": 1,
                "compile": "off",
                "validate_tokens": 2000,
            },
        }
    )
    process, resident = psutil.Process(), []
    real = step_module.to_device

    def to_device(part: Batch, device: torch.device) -> Any:
        resident.append(process.memory_info().rss)
        return real(part, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "to_device", to_device)
        figures = train(recipe, folder, tmp_path / "t", tmp_path / "m")
    assert (figures["steps"], figures["tokens"]) == (1, tokens)
    assert len(resident) == tokens // (40 * context)
    assert max(resident) < 1.02 * max(resident[:32])  # of 320 micro-batches
