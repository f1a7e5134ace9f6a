"""Checkpoints: exact, whole, the newest and the best kept; a full disk or altered bytes harm nothing else."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.native import load_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Train
from lmforge.train import checkpoint
from lmforge.train.checkpoint import Checkpoints, optimizer_tensors, restore_optimizers
from lmforge.train.loop import train
from lmforge.train.optim import build_optimizers
from tests.train.runs import recipe_of

CONFIG = GPTConfig(vocab_size=20, context=8, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=16)


def trained(steps: int, model=None, optimizers=None):
    if model is None:
        model = GPT(CONFIG)
        model.initialise(0)
        optimizers = build_optimizers(model, Train(optimizer="muon"))
    for _ in range(steps):
        model.loss(torch.arange(8)[None], torch.arange(1, 9)[None]).backward()
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad()
    return model, optimizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path / "tokenizer.json"


def test_going_on_is_exact(tmp_path: Path, tokenizer: Path) -> None:
    straight, _ = trained(6)
    model, optimizers = trained(3)
    Checkpoints(tmp_path / "c", 2).save(3, model, optimizers, {"step": 3, "best_step": 3}, tokenizer)
    fresh = GPT(CONFIG)
    fresh_optimizers = build_optimizers(fresh, Train(optimizer="muon"))
    assert Checkpoints(tmp_path / "c", 2).load_newest(fresh, fresh_optimizers)["step"] == 3
    trained(3, fresh, fresh_optimizers)
    for a, b in zip(straight.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    assert fresh.head.weight is fresh.embed.weight


def test_optimizer_state_goes_by_the_parameters_names() -> None:
    model, optimizers = trained(2)
    tensors = optimizer_tensors(model, optimizers)
    names = {name for name, _ in model.named_parameters()}
    assert {path.split("/")[1] for path in tensors} == names
    fresh = GPT(CONFIG)
    others = build_optimizers(fresh, Train(optimizer="muon"))
    for optimizer in others.values():  # the same parameters, grouped and numbered otherwise
        optimizer.param_groups.reverse()
        for group in optimizer.param_groups:
            group["params"].reverse()
    restore_optimizers(fresh, others, tensors)
    assert all(torch.equal(value, tensors[path]) for path, value in optimizer_tensors(fresh, others).items())
    of_name = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        (state,) = (each.state[parameter] for each in others.values() if parameter in each.state)
        (wanted,) = (each.state[of_name[name]] for each in optimizers.values() if of_name[name] in each.state)
        assert all(torch.equal(torch.as_tensor(state[field]), torch.as_tensor(wanted[field])) for field in wanted)


def test_state_that_was_written_by_number_is_read(tmp_path: Path, tokenizer: Path) -> None:
    straight, _ = trained(6)
    model, optimizers = trained(3)
    by_number = {
        f"{owner}/{index}/{field}": torch.as_tensor(value)
        for owner, optimizer in optimizers.items()
        for index, fields in optimizer.state_dict()["state"].items()
        for field, value in fields.items()
    }
    fresh = GPT(CONFIG)
    fresh.load_state_dict(model.state_dict())
    others = build_optimizers(fresh, Train(optimizer="muon"))
    restore_optimizers(fresh, others, by_number)
    trained(3, fresh, others)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    "path", ["adamw/blocks.9.ff.up.weight/exp_avg", "adamw/999/exp_avg", "sgd/embed.weight/momentum_buffer"]
)
def test_state_of_what_is_not_there_is_refused_by_name(path: str) -> None:
    model, optimizers = trained(1)
    with pytest.raises(InputError, match=rf"^o\.safetensors: it has state of {path} .*; run with --fresh"):
        restore_optimizers(model, optimizers, {path: torch.zeros(2)}, "o.safetensors")
    with pytest.raises(InputError, match="no parameter of this recipe's adamw has"):
        restore_optimizers(model, optimizers, {"adamw/embed.weight/exp_avg": torch.zeros(2, 2)})


def test_the_newest_and_the_best_are_kept(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    for step in range(1, 6):
        checkpoints.save(step, model, optimizers, {"step": step, "best_step": 2 if step > 1 else 1}, tokenizer)
    assert checkpoints.steps() == [2, 4, 5]


def test_a_moving_average_and_snapshots_are_kept_beside(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    checkpoints.save(1, model, optimizers, {"step": 1}, tokenizer)
    checkpoints.save(2, model, optimizers, {"step": 2}, tokenizer, {"norm.weight": torch.full((8,), 2.0)})
    assert checkpoints.average(1) == {}
    assert torch.equal(checkpoints.average(2)["norm.weight"], torch.full((8,), 2.0))
    checkpoint.write_snapshot(tmp_path / "s" / "step-00000002", model, 2, tokenizer)
    assert torch.equal(load_model(tmp_path / "s" / "step-00000002").embed.weight, model.embed.weight)


def test_none_yet(tmp_path: Path) -> None:
    model, optimizers = trained(0)
    assert Checkpoints(tmp_path / "c", 2).load_newest(model, optimizers) is None


def test_changed_bytes_are_named_and_incomplete_ones_passed_over(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 3)
    model, optimizers = trained(1)
    for step in (1, 2, 3):
        checkpoints.save(step, model, optimizers, {"step": step, "best_step": 1}, tokenizer)
    (checkpoints.path(3) / "manifest.json").unlink()
    assert checkpoints.load_newest(model, optimizers)["step"] == 2
    file = checkpoints.path(2) / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"optimizer\.safetensors: its bytes do not match .*remove .*go on from step 1"
    ):
        checkpoints.load_newest(model, optimizers)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_previous_one_usable(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    checkpoints.save(1, model, optimizers, {"step": 1, "best_step": 1}, tokenizer)

    def full(tensors, path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(LmforgeError, match="could not be written"):
        checkpoints.save(2, model, optimizers, {"step": 2, "best_step": 1}, tokenizer)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-00000001"]
    assert checkpoints.load_newest(model, optimizers)["step"] == 1


def test_another_model_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    checkpoints.save(1, model, optimizers, {"step": 1, "best_step": 1}, tokenizer)
    other = GPT(GPTConfig(vocab_size=21, context=8, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=16))
    with pytest.raises(InputError, match="made with another"):
        checkpoints.load_newest(other, build_optimizers(other, Train(optimizer="muon")))


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, real = threading.Event(), checkpoint.write_model

    def slow(*arguments: object, **more: object) -> None:
        assert may_write.wait(20)
        real(*arguments, **more)

    monkeypatch.setattr(checkpoint, "write_model", slow)
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    before = model.blocks[0].ff.up.weight.detach().clone()
    moments = optimizers["muon"].state_dict()["state"][0]["momentum"].clone()
    checkpoints.save(1, model, optimizers, {"step": 1}, tokenizer, dict(model.named_parameters()), wait=False)
    trained(2, model, optimizers)  # weights and moments move on
    assert checkpoints.steps() == []
    may_write.set()
    checkpoints.close()
    fresh, fresh_optimizers = trained(0)
    Checkpoints(tmp_path / "c", 2).load_newest(fresh, fresh_optimizers)
    assert torch.equal(fresh.blocks[0].ff.up.weight, before)
    assert torch.equal(fresh_optimizers["muon"].state_dict()["state"][0]["momentum"], moments)
    assert torch.equal(checkpoints.average(1)["blocks.0.ff.up.weight"], before)
    assert not torch.equal(model.blocks[0].ff.up.weight, before)


def test_a_disk_that_fills_while_training_goes_on_is_told_at_the_next_save(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "c", 2)
    model, optimizers = trained(1)
    checkpoints.save(1, model, optimizers, {"step": 1}, tokenizer)
    monkeypatch.setattr(
        checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    checkpoints.save(2, model, optimizers, {"step": 2}, tokenizer, wait=False)
    with pytest.raises(LmforgeError, match="No space left on device"):
        checkpoints.save(3, model, optimizers, {"step": 3}, tokenizer, wait=False)
    checkpoints.close()
    assert Checkpoints(tmp_path / "c", 2).load_newest(model, optimizers)["step"] == 1


@pytest.mark.slow
def test_two_hundred_kills_while_saving(tmp_path: Path, tokenizer: Path) -> None:
    """A child that does nothing but save is killed 200 times, at random moments: the newest complete checkpoint is
    always whole, and none that was finished is lost."""
    rng = random.Random(5)
    model, optimizers = trained(1)
    Checkpoints(tmp_path / "c", 2).save(0, model, optimizers, {"step": 0, "best_step": 0}, tokenizer)
    interrupted = 0
    for _ in range(200):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            checkpoints = Checkpoints(tmp_path / "c", 2)
            step = checkpoints.steps()[-1]
            while True:
                step += 1
                average = {"w": torch.full((999,), float(step))}
                checkpoints.save(
                    step, model, optimizers, {"step": step, "best_step": step - step % 7}, tokenizer, average
                )
                os.write(writer, step.to_bytes(8, "little"))
        os.close(writer)
        os.read(reader, 8)  # it is at it
        threading.Event().wait(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = b""
        while piece := os.read(reader, 65536):
            finished += piece
        os.close(reader)
        interrupted += any(path.name.endswith(".tmp") for path in (tmp_path / "c").iterdir())
        checkpoints = Checkpoints(tmp_path / "c", 2)
        state = checkpoints.load_newest(model, optimizers)
        assert state is not None
        assert state["step"] >= (int.from_bytes(finished[-8:], "little") if finished else 0)
        assert torch.equal(checkpoints.average(state["step"])["w"], torch.full((999,), float(state["step"])))
    assert interrupted > 50  # kills that fell into a save


def test_what_a_killed_run_left_half_written_is_cleared_at_the_next_start(tiny_run: Path, tmp_path: Path) -> None:
    """Snapshots, checkpoints and profiles alike, and single files; what the user keeps there stays."""
    run = tmp_path / "t"
    for folder in ("snapshots", "checkpoints", "profile"):
        (run / folder / ".step-00000011.k1lled.tmp").mkdir(parents=True)
        (run / folder / ".step-00000011.k1lled.tmp" / "model.safetensors").write_bytes(b"half")
    (run / ".ensemble.json.123.tmp").write_text("{")
    (run / "snapshots" / "notes.tmp").write_text("mine")
    train(recipe_of(tiny_run), tiny_run / "tokens", run, tmp_path / "m")
    assert [path.name for path in run.rglob("*.tmp")] == ["notes.tmp"]


def test_a_rank_that_does_not_write_clears_nothing(tmp_path: Path) -> None:
    """What another rank is writing looks like what a killed one left."""
    (tmp_path / "c" / ".step-00000001.x.tmp").mkdir(parents=True)
    model, optimizers = trained(0)
    assert Checkpoints(tmp_path / "c", 2).load_newest(model, optimizers) is None
    assert (tmp_path / "c" / ".step-00000001.x.tmp").exists()
