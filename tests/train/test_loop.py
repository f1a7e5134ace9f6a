"""Training: exact resume, micro-batches and ranks that change nothing, honest stops."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError, Interrupted, LmforgeError
from lmforge.formats.native import load_model
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT, FeedForward
from lmforge.parallel.mesh import Mesh
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import content_hash, hash_file
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.documents import Encoded
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import FORMAT, Shards
from lmforge.tokens.writer import Names, TokenWriter
from lmforge.train import loop
from lmforge.train.journal import read_lines
from lmforge.train.loop import TrainingRun, hash_weights, network_of, train, validation_rows
from lmforge.train.precision import LossScaler
from tests.tokens.conftest import write_documents
from tests.train.test_tensorboard import scalars


def recipe_of(tiny_run: Path, **train_keys: object) -> Recipe:
    return load_recipe(
        tiny_run / "recipe.toml", [f"train.{key}={json.dumps(value)}" for key, value in train_keys.items()]
    )


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(out / "metrics.jsonl") if "loss" in line]


def test_the_loss_falls_and_the_figures_are_there(tiny_run: Path, tmp_path: Path) -> None:
    figures = train(recipe_of(tiny_run, steps=40), tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert {"steps", "tokens", "seconds", "tokens_per_second", "valid_bits_per_byte", "weights_sha256"} <= set(figures)
    values = [loss for _, loss in losses(tmp_path / "train")]
    assert len(values) == 40
    assert values[-1] < 0.8 * values[0]
    assert content_hash(tmp_path / "model")
    valid = [
        line["valid_bits_per_byte"]
        for line in read_lines(tmp_path / "train" / "metrics.jsonl")
        if "valid_bits_per_byte" in line
    ]
    singles = [row["bits_per_byte"] for row in figures["candidates"] if len(row["members"]) == 1]
    assert min(singles) == pytest.approx(min(valid[1:]), rel=1e-9)  # those after which weights were kept
    assert figures["valid_bits_per_byte"] <= min(singles)
    assert figures["valid_bits_per_byte"] == min(
        row["bits_per_byte"] for row in figures["candidates"] if row["networks"] == 1
    )
    names = {row["name"] for row in figures["candidates"]}
    assert {
        "step 34",
        "step 40",
        "average of the last 4",
        "greedy soup",
        "4 networks together",
        "moving average",
    } <= names


def test_without_ensembles_the_best_checkpoint_is_the_model(tiny_run: Path, tmp_path: Path) -> None:
    figures = train(recipe_of(tiny_run, ensemble=0), tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert [row["name"] for row in figures["candidates"]] == [f"step {figures['best_step']}"] == [figures["chosen"]]
    assert not (tmp_path / "train" / "snapshots").exists()


def test_the_chosen_model_is_what_was_scored(tiny_run: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_run, steps=20)
    figures = train(recipe, tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    inputs, targets = validation_rows(Shards.open(tiny_run / "tokens", "valid"), 32, recipe.train.validate_tokens)
    nats = token_nats(load_model(tmp_path / "model"), inputs, targets)
    tokenizer = Tokenizer.load(tiny_run / "tokens" / "tokenizer.json")
    text = sum(len(tokenizer.token_bytes(token)) for token in targets[targets >= 0].tolist())
    assert float(nats.double().sum()) / math.log(2) / text == pytest.approx(figures["valid_bits_per_byte"], rel=1e-6)


REGIMES: dict[str, dict[str, object]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "over the epoch's edge": {"batch_tokens": 4096, "micro_batch_tokens": 4096},
    "two replicas": {"threads": 2},
    "in the middle of accumulation": {"inside": True, "micro_batch_tokens": 64},
    "bfloat16": {"precision": "bf16"},
    "a loss scale that moves": {"precision": "fp16"},
    "no ensembles": {"ensemble": 0},
    "a batch that grows": {"batch_schedule": [[0, 64], [0.3, 128], [0.6, 320]], "threads": 2},
}


@pytest.mark.parametrize("regime", REGIMES)
def test_stopped_and_started_again_equals_never_stopped(
    tiny_run: Path, tmp_path: Path, regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScaler, "DOUBLE_AFTER", 4)
    keys = {"checkpoint_every": 5} | REGIMES[regime]
    inside = keys.pop("inside", False)
    recipe = recipe_of(tiny_run, **keys)
    whole = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    if regime == "over the epoch's edge":
        assert Shards.open(tiny_run / "tokens", "train").tokens < 12 * 4096
    fail_at, now = {3, 7, 8, 11}, [0]
    real_step, real_move = TrainingRun.step, TrainingRun.on_device

    def step(self: TrainingRun, number: int, batch: Batch) -> dict[str, Any]:
        now[:] = [number, 0]
        if number in fail_at and not inside:
            fail_at.remove(number)
            raise KeyboardInterrupt
        return real_step(self, number, batch)

    def on_device(self: TrainingRun, part: Batch) -> Any:
        now[1] += 1
        if now[0] in fail_at and inside and now[1] == 3:  # of four micro-batches
            fail_at.remove(now[0])
            raise KeyboardInterrupt
        return real_move(self, part)

    monkeypatch.setattr(TrainingRun, "step", step)
    monkeypatch.setattr(TrainingRun, "on_device", on_device)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    again = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["candidates"] == whole["candidates"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[-1][1] < losses(tmp_path / "a")[0][1]


def ragged(rows: int = 16, context: int = 32, vocabulary: int = 300) -> Batch:
    """Rows of different lengths, of which every fourth token or so does not count either; one does not count at all."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, vocabulary, (rows, context + 1))
    targets = text[:, 1:].copy()
    for row, length in enumerate(rng.integers(1, context + 1, rows)):
        targets[row, length:] = -1
    targets[rng.random(targets.shape) < 0.25] = -1
    targets[5] = -1
    return Batch(text[:, :-1].copy(), targets, None)


def gradients(
    recipe: Recipe, tokens: Path, out: Path, micro: int, batch: Batch | None = None, threads: int = 1
) -> list[torch.Tensor]:
    """Of a batch, or of the first."""
    keys: dict[str, int] = {"micro_batch_tokens": micro, "threads": threads} | (
        {"batch_tokens": batch.inputs.size} if batch else {}
    )
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=keys)})
    with contextlib.closing(TrainingRun(recipe, tokens, out, Mesh(0, 1, torch.device("cpu")))) as run:
        run.gradient(0, batch or run.loader.batch(0), 32)
        return [parameter.grad for parameter in run.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all((x - y).norm() <= 1e-5 * x.norm() for x, y in zip(a, b, strict=True))


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
    inputs, targets, _ = ragged()
    (model.loss(torch.from_numpy(inputs), torch.from_numpy(targets)) / int((targets >= 0).sum())).backward()
    assert same(whole, [parameter.grad for parameter in model.parameters()])  # the mean over the tokens that count


TWO_RANKS = """
import sys
from pathlib import Path
import torch
from lmforge.parallel.mesh import join_mesh
from lmforge.recipe import load_recipe
from lmforge.train.loop import TrainingRun, train
from tests.train.test_loop import ragged

base, tokens, name, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
mesh = join_mesh()
recipe = load_recipe(base / "r.toml", ["train.batch_tokens=512", "train.micro_batch_tokens=96"])
run = TrainingRun(recipe, tokens, base / "g", mesh)
rows = run.loader.share(mesh.rank, mesh.world)
run.gradient(0, ragged().part(rows.start, len(rows)), 32)
torch.save([p.grad for p in run.model.parameters()], base / f"gradient{mesh.rank}")
real = TrainingRun.step
def step(self, number, batch):
    if number == dies_at:
        sys.exit(3)
    return real(self, number, batch)
TrainingRun.step = step
figures = train(load_recipe(base / "r.toml", ["train.checkpoint_every=5"]), tokens, base / name, base / (name + "m"))
(base / f"{name}-hash").write_text(figures["weights_sha256"])
"""


def on_two_ranks(tiny_run: Path, base: Path, name: str, dies_at: int = -1) -> None:
    (base / "two.py").write_text(TWO_RANKS)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(base / "two.py"),
        str(base),
        str(tiny_run / "tokens"),
        name,
        str(dies_at),
    ]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run(
        command,
        check=dies_at < 0,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        timeout=280,
    )


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
    run = TrainingRun(recipe, masked, tmp_path, Mesh(0, 1, torch.device("cpu")))
    batch = run.loader.batch(0)
    counted = int((batch.targets >= 0).sum())
    assert 0 < counted < 0.8 * batch.targets.size
    documents = None if batch.documents is None else torch.from_numpy(batch.documents)
    with torch.no_grad():
        mean = (
            float(run.model.loss(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), documents)) / counted
        )
    assert run.step(0, batch)["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    "sets",
    [
        ["tokens.packing=best_fit"],
        ["train.context_schedule=[[0, 8], [0.5, 32]]"],
        ["train.mixture={unknown = 2, code = [[0, 1], [0.5, 0.2]]}"],
    ],
    ids=["best fit", "contexts", "mixture"],
)
def test_every_order_of_the_data_resumes_exactly(
    tiny_run: Path, tmp_path: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_run / "recipe.toml", sets)
    whole = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    plain = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "c", tmp_path / "cm")
    real = TrainingRun.step

    def dies(self: TrainingRun, step: int, batch: Batch) -> dict[str, float]:
        if step == 7:
            raise KeyboardInterrupt
        return real(self, step, batch)

    monkeypatch.setattr(TrainingRun, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    monkeypatch.setattr(TrainingRun, "step", real)
    again = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"] != plain["weights_sha256"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_every_step_tells_how_long_it_waited_for_data(tiny_run: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    waits = [line["data_wait"] for line in read_lines(tmp_path / "t" / "metrics.jsonl") if "loss" in line]
    assert len(waits) == 12
    assert all(0 <= wait < 1 for wait in waits)


def test_altered_shards_are_refused_before_the_first_step(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "tokens", tmp_path / "tokens")
    path = next((tmp_path / "tokens").glob("train-*.bin"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"{path.name}: its bytes do not match the checksum in index\.json"):
        train(recipe_of(tiny_run), tmp_path / "tokens", tmp_path / "t", tmp_path / "m")


def test_two_ranks_equal_one(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text((tiny_run / "recipe.toml").read_text())
    recipe = load_recipe(tmp_path / "r.toml")
    one = train(recipe, tiny_run / "tokens", tmp_path / "one", tmp_path / "onem")
    on_two_ranks(tiny_run, tmp_path, "two")
    whole = gradients(recipe, tiny_run / "tokens", tmp_path, 16 * 32, ragged())
    for rank in range(2):
        assert same(whole, torch.load(tmp_path / f"gradient{rank}"))
    assert losses(tmp_path / "two")[0][1] == pytest.approx(losses(tmp_path / "one")[0][1], rel=1e-6)
    assert losses(tmp_path / "two")[-1][1] == pytest.approx(losses(tmp_path / "one")[-1][1], rel=1e-3)
    assert one["steps"] == len(losses(tmp_path / "two"))


@pytest.mark.slow
def test_two_ranks_resume_exactly(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text((tiny_run / "recipe.toml").read_text())
    on_two_ranks(tiny_run, tmp_path, "whole")
    on_two_ranks(tiny_run, tmp_path, "killed", dies_at=8)
    assert len(losses(tmp_path / "killed")) == 8
    on_two_ranks(tiny_run, tmp_path, "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (tmp_path / "killed-hash").read_text() == (tmp_path / "whole-hash").read_text()


def test_sigterm_saves_and_says_how_to_go_on(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tiny_run, checkpoint_every=100)
    real = TrainingRun.step

    def term(self: TrainingRun, step: int, batch: Batch) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, batch)

    monkeypatch.setattr(TrainingRun, "step", term)
    with pytest.raises(
        Interrupted, match=r"stopped after step 5 of 12, saved in .*step-00000005; the same command goes on"
    ):
        train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    monkeypatch.setattr(TrainingRun, "step", real)
    train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    assert [step for step, _ in losses(tmp_path / "t")] == list(range(1, 13))


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int], spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What block 1's feed-forward part gives is spoilt in some steps (from 0)."""
    real, step_now = TrainingRun.step, [-1]

    def step(self: TrainingRun, number: int, batch: Batch) -> dict[str, Any]:
        step_now[0] = number
        result = real(self, number, batch)
        step_now[0] = -1  # validation is not spoilt
        return result

    forward = FeedForward.forward

    def spoilt(self: FeedForward, x: torch.Tensor) -> torch.Tensor:
        value = forward(self, x)
        return spoil(value) if step_now[0] in steps and getattr(self, "poisoned", False) else value

    monkeypatch.setattr(TrainingRun, "step", step)
    monkeypatch.setattr(FeedForward, "forward", spoilt)
    init = TrainingRun.__init__

    def started(self: TrainingRun, *arguments: Any) -> None:
        init(self, *arguments)
        self.model.blocks[1].ff.poisoned = True

    monkeypatch.setattr(TrainingRun, "__init__", started)


def skipped(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(out / "metrics.jsonl") if "skipped" in line]


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
    assert hurt["valid_bits_per_byte"] < 1.01 * clean["valid_bits_per_byte"]
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
    real, loss = TrainingRun.step, GPT.loss

    def step(self: TrainingRun, number: int, batch: Batch) -> dict[str, Any]:
        monkeypatch.setattr(GPT, "loss", (lambda *arguments: 100 * loss(*arguments)) if number == 30 else loss)
        return real(self, number, batch)

    monkeypatch.setattr(TrainingRun, "step", step)
    hurt = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert hurt["valid_bits_per_byte"] < 1.01 * clean["valid_bits_per_byte"]
    (line,) = skipped(tmp_path / "b")
    assert line["step"] == 31
    assert "times that of the last 30 steps" in line["skipped"]
    assert line["documents"]


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


def test_bad_steps_in_a_row_lead_back_to_the_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_run, steps=24)
    poisoned(monkeypatch, {9, 10, 11}, lambda x: x * math.nan)
    figures = train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    assert [line["step"] for line in skipped(tmp_path / "t")] == [10, 11, 12]
    assert all(line["skipped"] == "left out after a return to a checkpoint" for line in skipped(tmp_path / "t"))
    assert json.loads((tmp_path / "t" / "excluded.json").read_text()) == {"steps": [9, 10, 11], "returns": 1}
    assert [
        line["step"] for line in read_lines(tmp_path / "t" / "metrics.jsonl") if "lr" in line or "skipped" in line
    ] == [*range(1, 25)]
    assert figures["valid_bits_per_byte"] < 8


def test_what_going_back_does_not_help_stops_with_the_cause(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LmforgeError, match=r"steps \d+ to \d+ had to be skipped.*: the loss is .*nan; lower train.peak_lr"
    ):
        train(recipe_of(tiny_run, peak_lr=1e30, warmup=0), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


def test_statistics_are_in_the_metrics(tiny_run: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_run, validate_every=4), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    lines = read_lines(tmp_path / "t" / "metrics.jsonl")
    layers = {line["step"]: line["layers"] for line in lines if "layers" in line}
    assert [*layers] == [4, 8, 12]
    assert set(layers[4]) == {"embed", "blocks.0", "blocks.1", "norm"}
    assert all("noise_scale_tokens" in line for line in lines if "layers" in line)
    assert all(set(line["activations"]) == set(layers[4]) for line in lines if "valid_bits_per_byte" in line)


def test_events_and_profile_are_written_and_change_nothing(tiny_run: Path, tmp_path: Path) -> None:
    plain = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    watched = train(
        recipe_of(tiny_run, tensorboard=True, profile=2), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm"
    )
    assert watched["weights_sha256"] == plain["weights_sha256"]
    (events,) = (tmp_path / "b" / "tensorboard").iterdir()
    found = scalars(events)
    assert [(step, pytest.approx(value)) for step, tag, value in found if tag == "loss"] == losses(tmp_path / "b")
    assert {
        "lr",
        "grad_norm",
        "tokens_per_second",
        "utilization",
        "memory_bytes",
        "data_wait",
        "valid_bits_per_byte",
    } <= {tag for _, tag, _ in found}
    assert len([*(tmp_path / "b" / "profile").glob("step-00000004.*")]) == 2
    lines = [line for line in read_lines(tmp_path / "b" / "metrics.jsonl") if "loss" in line]
    assert all(line["utilization"] > 0 and line["memory_bytes"] > 1e7 for line in lines)
    assert not (tmp_path / "a" / "tensorboard").exists()


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
    found, copies = [], []
    real = loop.to_host
    monkeypatch.setattr(loop, "to_host", lambda *numbers: copies.append(len(numbers)) or real(*numbers))
    for micro in (256, 32):
        recipe = recipe_of(tiny_run, micro_batch_tokens=micro, optimizer="muon")
        with contextlib.closing(
            TrainingRun(recipe, tiny_run / "tokens", tmp_path / str(micro), Mesh(0, 1, torch.device("cpu")))
        ) as run:
            batch = run.loader.batch(0)
            with Reads() as reads:
                run.step(0, batch)
        found.append(reads.count)
    # The loss and the gradient's norm, which decide whether there is an update at all, in one copy; no other number of
    # the device is read.
    assert copies == [2, 2]
    assert found == [0, 0]


def test_frozen_weights_cost_no_gradients(tiny_run: Path, tmp_path: Path) -> None:
    with contextlib.closing(
        TrainingRun(recipe_of(tiny_run), tiny_run / "tokens", tmp_path, Mesh(0, 1, torch.device("cpu")))
    ) as run:
        whole = run.flops_per_token(32)
        run.model.embed.requires_grad_(False)
        assert run.flops_per_token(32) == pytest.approx(whole * 2 / 3)
        assert run.flops_per_token(16) < run.flops_per_token(32)


def test_when_its_time_is_over_it_saves_and_the_same_command_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    for step in (1, 2):
        with pytest.raises(
            Interrupted, match=rf"stopped after step {step} of 12, saved in .*; the same command goes on"
        ):
            train(recipe_of(tiny_run, max_seconds=1e-6), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    again = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_batch_smaller_than_a_row_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_tokens: 16 is less than one row of 32"):
        train(recipe_of(tiny_run, batch_tokens=16), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    with pytest.raises(InputError, match="smaller than one batch"):
        train(recipe_of(tiny_run, batch_tokens=50_000_000), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


def test_a_batch_that_grows_takes_the_same_rows(tiny_run: Path, tmp_path: Path) -> None:
    """The journal counts its tokens, no row comes twice, and a batch's gradient is the mean over its own tokens."""
    recipe = recipe_of(tiny_run, batch_schedule=[[0, 64], [0.5, 256]], optimizer="sgd", peak_lr=1e-9, ensemble=0)
    train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    lines = [line for line in read_lines(tmp_path / "a" / "metrics.jsonl") if "loss" in line]
    assert [line["tokens"] for line in lines] == [
        *range(64, 7 * 64, 64),
        *range(6 * 64 + 256, 6 * 64 + 6 * 256 + 1, 256),
    ]
    constant = recipe_of(tiny_run, batch_tokens=64, steps=30, optimizer="sgd", peak_lr=1e-9, ensemble=0)
    train(constant, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    same = [loss for _, loss in losses(tmp_path / "b")]
    grown = [line["loss"] for line in lines]
    assert grown[:6] == pytest.approx(same[:6], rel=1e-4)
    assert grown[6:] == pytest.approx([sum(same[first : first + 4]) / 4 for first in range(6, 30, 4)], rel=2e-2)


def test_validation_rows_are_spread_and_fixed(tiny_run: Path) -> None:
    shards = Shards.open(tiny_run / "tokens", "valid")
    inputs, targets = validation_rows(shards, 32, 512)
    assert inputs.shape == targets.shape
    assert inputs.shape[0] <= 16
    shifted = inputs[:, 1:]
    assert ((targets[:, :-1] == shifted) | (targets[:, :-1] == -1)).all()
    assert torch.equal(inputs, validation_rows(shards, 32, 512)[0])


def test_weights_hash_sees_every_change() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    first = hash_weights(tensors)
    assert first == hash_weights(dict(reversed(tensors.items())))
    assert first != hash_weights({**tensors, "a": torch.tensor([0.0, 0.0, 1e-45])})
    assert first != hash_weights({"a": tensors["a"], "c": tensors["b"]})


def test_the_network_follows_the_recipe() -> None:
    config = network_of(
        Recipe.model_validate({"model": {"layers": 3, "d_model": 64, "heads": 2}, "tokens": {"context": 99}}), 777
    )
    assert (config.layers, config.d_ff, config.kv_heads, config.context, config.vocab_size) == (3, 256, 2, 99, 777)


@pytest.mark.slow
def test_five_random_kills(tiny_run: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of a real command, until it gets through: same losses, same weights."""
    import random

    rng = random.Random(7)
    for name in ("whole", "killed"):
        run = tmp_path / name
        overrides = ["--set", f"run_dir={run}", "--set", "train.steps=150", "--set", "train.checkpoint_every=10"]
        command = [
            sys.executable,
            "-m",
            "lmforge.cli",
            "run",
            str(tiny_run / "recipe.toml"),
            "--until",
            "train",
            *overrides,
        ]
        if name == "killed":
            kills = 0
            while kills < 5:
                process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                try:
                    process.wait(rng.uniform(3.0, 9.0))
                    break  # it got through
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
            assert kills >= 2
        subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "whole" / "train") == losses(tmp_path / "killed" / "train")
    records = [
        json.loads((tmp_path / n / "record.json").read_text())["stages"]["train"]["figures"]
        for n in ("whole", "killed")
    ]
    assert records[0]["weights_sha256"] == records[1]["weights_sha256"]


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
    real = TrainingRun.on_device

    def on_device(self: TrainingRun, part: Batch) -> Any:
        resident.append(process.memory_info().rss)
        return real(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "on_device", on_device)
        figures = train(recipe, folder, tmp_path / "t", tmp_path / "m")
    assert (figures["steps"], figures["tokens"]) == (1, tokens)
    assert len(resident) == tokens // (40 * context)
    assert max(resident) < 1.02 * max(resident[:32])  # of 320 micro-batches
