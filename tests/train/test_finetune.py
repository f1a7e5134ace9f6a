"""Fine-tuning, from a base and examples to a scored model: it learns, resumes exactly, and says what is wrong with its
input."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.errors import InputError
from lmforge.evaluate.harness import evaluate
from lmforge.formats.load import load_any
from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.formats.transformers import import_model
from lmforge.pipeline import find_recipe, run_stages, states
from lmforge.recipe import Recipe, load_recipe, to_toml
from lmforge.record import atomic_directory
from lmforge.report.page import write_report
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import Shards
from lmforge.train.adapters import load_with_adapter
from lmforge.train.finetune import example_rows
from lmforge.train.journal import read_lines
from lmforge.train.loop import train
from lmforge.train.step import TrainStep
from tests.formats.test_transformers import checkpoint

WORDS = {"hot": ["fire", "ember", "spark"], "cold": ["water", "iron", "steel"]}


@pytest.fixture(scope="module")
def base(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny run's texts with room for a question."""
    folder = tmp_path_factory.mktemp("base")
    recipe = load_recipe(
        tiny_run / "recipe.toml",
        ["tokens.context=64", "train.steps=60", "train.batch_tokens=512", "train.peak_lr=1e-2"],
    )
    train(recipe, tiny_run / "tokens", folder / "train", folder / "model")
    return folder / "model"


def labelled(path: Path, count: int = 240, seed: int = 0) -> Path:
    """Three words, whose kind is the label."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        label = rng.choice([*WORDS])
        lines.append({"text": " ".join(rng.choices(WORDS[label], k=3)) + f" {rng.randint(0, 99)}", "label": label})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe_of(folder: Path, base: Path, more: str = "", task: str = "classify", **train: Any) -> Recipe:
    keys = {
        "steps": 60,
        "batch_tokens": 512,
        "peak_lr": 1e-2,
        "threads": 1,
        "compile": "off",
        "micro_batch_tokens": 256,
    } | train
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    (folder / "r.toml").write_text(
        f'name = "fine"\nrun_dir = "{folder / "run"}"\n[corpus]\nholdout = 0.2\n[train]\n{lines}\n[evaluate]\nitems = '
        '8\ntasks = ["answers"]\n'
        f'[finetune]\nbase = "{base}"\ntask = "{task}"\ntrain = "examples.jsonl"\n{more}'
    )
    return load_recipe(folder / "r.toml")


def scored(recipe: Recipe) -> dict[str, Any]:
    """Trained, and its score; the compressed model is left out."""
    run = recipe.directory
    run_stages(recipe, run, until="train")
    evaluate(recipe, {"model": run / "model"}, run / "corpus", run / "tokens", run / "scores")
    score: dict[str, Any] = json.loads((run / "scores" / "answers.json").read_text())
    return score


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_it_learns_and_the_served_model_is_an_ordinary_one(base: Path, tmp_path: Path, lora: bool) -> None:
    labelled(tmp_path / "examples.jsonl")
    recipe = recipe_of(
        tmp_path,
        base,
        "[finetune.lora]\nrank = 4\n" if lora else "",
        **({"steps": 120, "peak_lr": 4e-2} if lora else {}),
    )
    score = scored(recipe)
    figures = run_stages(recipe, recipe.directory, until="train")
    assert score["metric"] == "accuracy"
    assert score["value"] > 0.9 > 0.7 > score["baselines"]["most_frequent_label"]
    assert score["low"] < score["value"] <= score["high"]
    assert set(score["labels"]) == {"hot", "cold"}
    model = load_model(recipe.directory / "model")
    assert {type(module).__name__ for module in model.modules()}.isdisjoint({"Adapted"})
    before, after = model_tensors(load_model(base)), model_tensors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (changed == {name for name in before if name.startswith("blocks.") and "norm" not in name}) == lora
    parameters = figures["train"]["parameters"]
    assert figures["train"]["trained_parameters"] == (
        2 * 4 * (32 + 96 + 32 + 32 + 2 * (32 + 128)) if lora else parameters
    )
    if lora:
        run_stages(recipe, recipe.directory)
        assert "accuracy" in (recipe.directory / "report.html").read_text()
        assert load_any(recipe.directory).methods == ("quantize",)
        with_adapter = model_tensors(load_with_adapter(recipe.directory / "model" / "adapter"))
        assert all(torch.allclose(with_adapter[name], after[name], atol=1e-6) for name in after)
        assert load_any(recipe.directory / "model" / "adapter").name == "adapter"
        assert {state.state for state in states(load_recipe(recipe.directory / "recipe.toml"), recipe.directory)} == {
            "done"
        }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_stopped_and_started_again_equals_never_stopped(
    base: Path, tmp_path: Path, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    real = TrainStep.run
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        labelled(tmp_path / name / "examples.jsonl")
        recipe = recipe_of(tmp_path / name, base, "lora = {}\n" if lora else "", steps=12, checkpoint_every=4)

        def dies(self: TrainStep, step: int, batch: Batch) -> dict[str, Any]:
            if step == 10:
                raise KeyboardInterrupt
            return real(self, step, batch)

        if name == "stopped":
            monkeypatch.setattr(TrainStep, "run", dies)
            with pytest.raises(KeyboardInterrupt):
                run_stages(recipe, recipe.directory, until="train")
            monkeypatch.setattr(TrainStep, "run", real)
        figures = run_stages(recipe, recipe.directory, until="train")["train"]
        losses = [line["loss"] for line in read_lines(recipe.directory / "train" / "metrics.jsonl") if "loss" in line]
        results.append((figures["weights_sha256"], losses, [row["bits_per_byte"] for row in figures["candidates"]]))
    assert results[0] == results[1]
    assert len(results[0][1]) == 12


def test_a_pair_of_texts_and_a_file_of_test_examples(base: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    for name, count in (("examples", 120), ("test", 30)):
        lines = [
            {"a": rng.choice(WORDS["hot"]), "b": f"{rng.choice(WORDS['cold'])} {rng.randint(0, 999)}", "label": n % 2}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = 'test = "test.jsonl"\nfields = ["a", "b"]\nlabels = { 0 = "no", 1 = "yes" }\n'
    recipe = recipe_of(tmp_path, base, more, steps=2)
    score = scored(recipe)
    assert score["items"] == 30
    assert set(score["labels"]) == {"no", "yes"}
    assert to_toml(load_recipe(recipe.directory / "recipe.toml")) == to_toml(recipe)


def test_spans_are_found_in_their_context(base: Path, tmp_path: Path) -> None:
    """The answer is the word after "is", or there is none; a model of this size learns which question has none, and to
    copy."""
    rng = random.Random(0)
    words = ["iron", "fire", "water", "steel"]
    lines = []
    for number in range(400):
        word = rng.choice(words)
        known = bool(number % 4)
        lines.append(
            {
                "question": "what?",
                "context": f"{number} is {word}" if known else f"{number}",
                "answers": {"text": [word] if known else []},
            }
        )
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = recipe_of(tmp_path, base, task="span", steps=80)
    score = scored(recipe)
    assert score["metric"] == "F1"
    assert score["items"] == 8
    assert score["value"] > 0.4
    assert 0 <= score["exact"] <= score["value"]


def test_conversations(base: Path, tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": f"say {word} {n}"}, {"role": "assistant", "content": word}]}
        for n in range(80)
        for word in ("fire", "water", "iron")
    ]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = recipe_of(tmp_path, base, task="chat", steps=30)
    score = scored(recipe)
    assert score["metric"] == "bits per byte of answers"
    assert 0 < score["value"] < 2
    assert score["written"]["items"] == 8
    rows = [json.loads(line) for line in (recipe.directory / "scores" / "answers.items.jsonl").read_text().splitlines()]
    assert sum("completion" in row for row in rows if row["model"] == "model") == 8


def test_only_answers_are_learned_and_examples_are_whole(base: Path, tmp_path: Path) -> None:
    labelled(tmp_path / "examples.jsonl")
    recipe = recipe_of(tmp_path, base)
    figures = run_stages(recipe, recipe.directory, until="tokens")
    assert figures["tokens"]["counted_train"] < 0.4
    assert recipe.tokens.packing == "best_fit"
    inputs, targets, documents, _ = example_rows(Shards.open(recipe.directory / "tokens", "valid"), 64, 512, 1)
    assert inputs.shape == targets.shape == documents.shape
    assert 0 < int((targets >= 0).sum()) < 0.4 * targets.numel()
    assert int(documents.max()) > 0


def test_what_the_recipe_may_not_say(base: Path, tmp_path: Path, tiny_run: Path) -> None:
    labelled(tmp_path / "examples.jsonl")
    recipe_of(tmp_path, base)
    for override, message in [
        ("model.layers=3", r"model\.layers: 3 is not 2, that of finetune\.base; leave it out"),
        ("tokens.vocab_size=300", r"tokens\.vocab_size: 300 is not 320"),
        (
            'corpus.sources=[{kind="python-library"}]',
            r"corpus\.sources: a recipe with \[finetune\] learns from finetune\.train alone",
        ),
        ("finetune.base=nowhere", r"finetune\.base: nowhere: no model there"),
        (f"finetune.base={tiny_run / 'compressed'}", "a compressed model, which cannot be trained"),
        ('finetune.lora.targets=["ff.sideways"]', r"finetune\.lora\.targets\.0"),
        ("finetune.lora.rnk=3", "did you mean 'rank'"),
        ("finetune.tsk=3", "did you mean 'task'"),
    ]:
        with pytest.raises(InputError, match=message):
            load_recipe(tmp_path / "r.toml", [override])
    assert load_recipe(tmp_path / "r.toml", [f"finetune.base={tiny_run}"]).finetune.base == tiny_run / "model"  # type: ignore[union-attr]


def test_another_base_makes_the_run_stale(base: Path, tmp_path: Path, tiny_run: Path) -> None:
    labelled(tmp_path / "examples.jsonl")
    recipe = recipe_of(tmp_path, base, steps=2)
    run_stages(recipe, recipe.directory, until="train")
    (tmp_path / "other").mkdir()
    model = load_model(base)
    model.initialise(2)
    with atomic_directory(tmp_path / "other") as directory:
        write_model(directory, model.config, model_tensors(model), tiny_run / "tokens" / "tokenizer.json")
    moved = load_recipe(tmp_path / "r.toml", [f"finetune.base={tmp_path / 'other'}"])
    assert [state.state for state in states(moved, recipe.directory)][:3] == ["stale"] * 3


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_it_begins_with_an_imported_model(tmp_path: Path, lora: bool) -> None:
    import_model(checkpoint(tmp_path / "theirs", "llama", max_position_embeddings=128), tmp_path / "base")
    labelled(tmp_path / "examples.jsonl", 60)
    recipe = recipe_of(tmp_path, tmp_path / "base", "lora = {}\n" if lora else "", steps=6)
    figures = run_stages(recipe, recipe.directory, until="train")["train"]
    before, after = load_model(tmp_path / "base"), load_model(recipe.directory / "model")
    assert after.config.to_json() == before.config.to_json()
    assert torch.equal(before.embed.weight, after.embed.weight) == lora
    assert not torch.equal(before.blocks[0].ff.up.weight, after.blocks[0].ff.up.weight)
    assert (recipe.directory / "tokens" / "tokenizer.json").read_bytes() == (
        tmp_path / "base" / "tokenizer.json"
    ).read_bytes()
    losses = [line["loss"] for line in read_lines(recipe.directory / "train" / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    assert figures["parameters"] == sum(tensor.numel() for tensor in model_tensors(after).values())


def test_a_base_that_is_not_imported_yet_says_how(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", "llama")
    labelled(tmp_path / "examples.jsonl", 8)
    with pytest.raises(InputError, match="lmforge import"):
        recipe_of(tmp_path, tmp_path / "theirs")


def test_a_label_that_begins_another_is_told_apart(base: Path, tmp_path: Path) -> None:
    """As long as the end of the answer is not scored, the shorter one is never less likely."""
    rng = random.Random(3)
    kinds = {"comp": WORDS["hot"], "comp graphics": WORDS["cold"]}
    lines = []
    for _ in range(240):
        label = rng.choice([*kinds])
        lines.append({"text": " ".join(rng.choices(kinds[label], k=3)) + f" {rng.randint(0, 99)}", "label": label})
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scored(recipe_of(tmp_path, base))["value"] > 0.9


def test_few_examples_get_enough_updates(base: Path, tmp_path: Path) -> None:
    """Nothing stated but base and examples: as many updates as learning takes, and they learn."""
    labelled(tmp_path / "examples.jsonl", 334)
    text = (
        f'name = "fine"\nrun_dir = "{tmp_path / "run"}"\n[corpus]\nholdout = 0.2\n[train]\nthreads = 1\n'
        'compile = "off"\n'
        f'peak_lr = 1e-2\n[finetune]\nbase = "{base}"\ntask = "classify"\ntrain = "examples.jsonl"\n'
    )
    (tmp_path / "r.toml").write_text(text)
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.finetune
    assert recipe.train.batch_tokens < 8192
    figures = run_stages(recipe, recipe.directory, until="train")["train"]
    assert figures["steps"] >= 100
    again = load_recipe(recipe.directory / "recipe.toml")
    assert (again.train.batch_tokens, again.finetune) == (recipe.train.batch_tokens, recipe.finetune)
    evaluate(
        recipe, {"model": tmp_path / "run/model"}, tmp_path / "run/corpus", tmp_path / "run/tokens", tmp_path / "scores"
    )
    assert json.loads((tmp_path / "scores" / "answers.json").read_text())["value"] > 0.9
    (tmp_path / "r.toml").write_text(text.replace("peak_lr = 1e-2", "batch_tokens = 4096"))
    assert load_recipe(tmp_path / "r.toml").train.batch_tokens == 4096


def test_rows_that_would_cut_examples_are_refused(base: Path, tmp_path: Path) -> None:
    labelled(tmp_path / "examples.jsonl")
    recipe_of(tmp_path, base)
    with pytest.raises(InputError, match=r"tokens\.packing: 'ring' would cut examples in two"):
        load_recipe(tmp_path / "r.toml", ["tokens.packing=ring"])
    with pytest.raises(InputError, match=r"train\.context_schedule: shorter rows would cut examples in two"):
        load_recipe(tmp_path / "r.toml", ["train.context_schedule=[[0, 32], [0.5, 64]]"])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_finished_run_needs_neither_its_base_nor_its_examples(base: Path, tmp_path: Path, lora: bool) -> None:
    own = tmp_path / "own" / "base"
    shutil.copytree(base, own)
    labelled(tmp_path / "examples.jsonl")
    recipe = recipe_of(tmp_path, own, "lora = {}\n" if lora else "", steps=3)
    run_stages(recipe, recipe.directory)
    tokens = load_any(recipe.directory).tokenizer.vocab_size
    shutil.rmtree(own)
    (tmp_path / "examples.jsonl").unlink()
    assert find_recipe(recipe.directory) == recipe
    assert load_any(recipe.directory).tokenizer.vocab_size == tokens
    assert load_any(recipe.directory, which="model").config.layers == 2
    assert "answers" in write_report(recipe.directory).read_text()
    moved = recipe.directory.rename(tmp_path / "moved")
    assert find_recipe(moved).finetune == recipe.finetune
    assert load_any(moved).name == "moved"
    with pytest.raises(InputError, match="no model there"):  # a recipe that is yet to be run still has to name one
        load_recipe(tmp_path / "r.toml")
