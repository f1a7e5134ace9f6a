"""Training: exact resume, micro-batches and ranks that change nothing, honest stops."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError, Interrupted, LmforgeError
from lmforge.model.saved import load_model
from lmforge.model.score import token_nats
from lmforge.parallel.mesh import Mesh
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import content_hash
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import Shards
from lmforge.train.journal import read_lines
from lmforge.train.loop import TrainingRun, hash_weights, network_of, train, validation_rows
from tests.tokens.conftest import write_documents


def recipe_of(tiny_run: Path, **train_keys: object) -> Recipe:
    return load_recipe(tiny_run / "recipe.toml", [f"train.{key}={json.dumps(value)}" for key, value in train_keys.items()])


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(out / "metrics.jsonl") if "loss" in line]


def test_the_loss_falls_and_the_figures_are_there(tiny_run: Path, tmp_path: Path) -> None:
    figures = train(recipe_of(tiny_run, steps=40), tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert {"steps", "tokens", "seconds", "tokens_per_second", "valid_bits_per_byte", "weights_sha256"} <= set(figures)
    values = [loss for _, loss in losses(tmp_path / "train")]
    assert len(values) == 40
    assert values[-1] < 0.8 * values[0]
    assert content_hash(tmp_path / "model")
    valid = [line["valid_bits_per_byte"] for line in read_lines(tmp_path / "train" / "metrics.jsonl") if "valid_bits_per_byte" in line]
    singles = [row["bits_per_byte"] for row in figures["candidates"] if len(row["members"]) == 1]
    assert min(singles) == pytest.approx(min(valid[1:]), rel=1e-9)  # those after which weights were kept
    assert figures["valid_bits_per_byte"] <= min(singles)
    assert figures["valid_bits_per_byte"] == min(row["bits_per_byte"] for row in figures["candidates"] if row["networks"] == 1)
    names = {row["name"] for row in figures["candidates"]}
    assert {"step 34", "step 40", "average of the last 4", "greedy soup", "4 networks together", "moving average"} <= names


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_started_again_equals_never_stopped(
    tiny_run: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_run, optimizer=optimizer, checkpoint_every=5)
    whole = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    real, fail_at = TrainingRun.step, {3, 7, 8, 11}

    def dies(self: TrainingRun, step: int, batch: Batch) -> dict[str, float]:
        if step in fail_at:
            fail_at.remove(step)
            raise KeyboardInterrupt
        return real(self, step, batch)

    monkeypatch.setattr(TrainingRun, "step", dies)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    again = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def gradients(recipe: Recipe, tokens: Path, out: Path, micro: int, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    run = TrainingRun(recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch_tokens": micro})}), tokens, out,
                      Mesh(0, 1, torch.device("cpu")))
    kept: list[torch.Tensor] = []

    def keep(parameters, limit):  # stands where the gradient is complete
        kept.extend(p.grad.clone() for p in parameters)
        return torch.tensor(0.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    run.step(0, run.loader.batch(0))
    return kept


def test_micro_batches_change_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tiny_run)
    whole = gradients(recipe, tiny_run / "tokens", tmp_path, 256, monkeypatch)
    for micro in (32, 64, 96):
        for a, b in zip(whole, gradients(recipe, tiny_run / "tokens", tmp_path, micro, monkeypatch), strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.fixture(scope="module")
def masked(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's texts as shards of which a part counts: in each document another share of its characters, in some nothing."""
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
    masked: Path, tiny_run: Path, tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is over the tokens that count in the whole batch, however unevenly they fall into micro-batches and ranks."""
    recipe = load_recipe(tiny_run / "recipe.toml", [f"tokens.packing={packing}"])
    whole = gradients(recipe, masked, tmp_path, 256, monkeypatch)
    for micro in (32, 64, 96):
        for a, b in zip(whole, gradients(recipe, masked, tmp_path, micro, monkeypatch), strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm()
    run = TrainingRun(recipe, masked, tmp_path, Mesh(0, 1, torch.device("cpu")))
    batch = run.loader.batch(0)
    counted = int((batch.targets >= 0).sum())
    assert 0 < counted < 0.8 * batch.targets.size
    documents = None if batch.documents is None else torch.from_numpy(batch.documents)
    with torch.no_grad():
        mean = float(run.model.loss(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), documents)) / counted
    assert run.step(0, batch)["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("sets", [["tokens.packing=best_fit"], ["train.context_schedule=[[0, 8], [0.5, 32]]"],
                                  ["train.mixture={unknown = 2, code = [[0, 1], [0.5, 0.2]]}"]], ids=["best fit", "contexts", "mixture"])
def test_every_order_of_the_data_resumes_exactly(tiny_run: Path, tmp_path: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
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
    recipe = tmp_path / "r.toml"
    recipe.write_text((tiny_run / "recipe.toml").read_text())
    one = train(load_recipe(recipe), tiny_run / "tokens", tmp_path / "one", tmp_path / "onem")
    script = tmp_path / "two.py"
    script.write_text(
        "import sys; from pathlib import Path; from lmforge.recipe import load_recipe; from lmforge.train.loop import train\n"
        f"b = Path({str(tmp_path)!r}); train(load_recipe(b / 'r.toml'), Path({str(tiny_run / 'tokens')!r}), b / 'two', b / 'twom')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=200)
    assert losses(tmp_path / "two")[0][1] == pytest.approx(losses(tmp_path / "one")[0][1], rel=1e-6)
    assert losses(tmp_path / "two")[-1][1] == pytest.approx(losses(tmp_path / "one")[-1][1], rel=1e-3)
    assert one["steps"] == len(losses(tmp_path / "two"))


def test_sigterm_saves_and_says_how_to_go_on(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tiny_run, checkpoint_every=100)
    real = TrainingRun.step

    def term(self: TrainingRun, step: int, batch: Batch) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, batch)

    monkeypatch.setattr(TrainingRun, "step", term)
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 12, saved in .*step-00000005; the same command goes on"):
        train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    monkeypatch.setattr(TrainingRun, "step", real)
    train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    assert [step for step, _ in losses(tmp_path / "t")] == list(range(1, 13))


def test_a_loss_that_is_no_number_stops_with_the_step(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(LmforgeError, match=r"the loss at step \d+ is .*(nan|inf).*; lower train.peak_lr"):
        train(recipe_of(tiny_run, peak_lr=1e30, warmup=0), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


def test_a_batch_smaller_than_a_row_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_tokens: 16 is less than one row of 32"):
        train(recipe_of(tiny_run, batch_tokens=16), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    with pytest.raises(InputError, match="smaller than one batch"):
        train(recipe_of(tiny_run, batch_tokens=50_000_000), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


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
    config = network_of(Recipe.model_validate({"model": {"layers": 3, "d_model": 64, "heads": 2}, "tokens": {"context": 99}}), 777)
    assert (config.layers, config.d_ff, config.kv_heads, config.context, config.vocab_size) == (3, 256, 2, 99, 777)


@pytest.mark.slow
def test_five_random_kills(tiny_run: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of a real command, until it gets through: same losses, same weights."""
    import random

    rng = random.Random(7)
    for name in ("whole", "killed"):
        run = tmp_path / name
        overrides = ["--set", f"run_dir={run}", "--set", "train.steps=150", "--set", "train.checkpoint_every=10"]
        command = [sys.executable, "-m", "lmforge.cli", "run", str(tiny_run / "recipe.toml"), "--until", "train", *overrides]
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
    records = [json.loads((tmp_path / n / "record.json").read_text())["stages"]["train"]["figures"] for n in ("whole", "killed")]
    assert records[0]["weights_sha256"] == records[1]["weights_sha256"]
