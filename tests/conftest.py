"""One thread, no network, no user cache; and one finished tiny run that several tests look at."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lmforge import cli

torch.set_num_threads(1)
# a shell's background job (make test &, nohup) ignores Ctrl-C, and so would every process that the tests start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# no deadline: the first call of a compiled loop takes as long as compiling it. The same examples in every run of one
# version, so that a change is judged by what it changed; other examples each time: --hypothesis-profile=search
settings.register_profile("here", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile("here")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def tiny_texts(directory: Path, documents: int = 120, seed: int = 0) -> Path:
    """A folder of small distinct texts: prose and Python functions that parse."""
    rng = random.Random(seed)
    words = [
        "forge",
        "anvil",
        "hammer",
        "iron",
        "steel",
        "fire",
        "water",
        "smith",
        "apprentice",
        "bellows",
        "spark",
        "metal",
        "ember",
        "tongs",
        "craft",
        "learn",
    ]
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        if index % 3:
            sentences = [" ".join(rng.choices(words, k=rng.randint(6, 14))).capitalize() + "." for _ in range(12)]
            (directory / f"prose-{index:03}.txt").write_text("\n".join(sentences) + "\n")
        else:
            name, other = rng.sample(words, 2)
            functions = [
                f'def {name}_{i}(value, {other}):\n    """Return the {rng.choice(words)} of {other}."""\n'
                f"    total = value + {rng.randint(1, 99)}\n    for item in {other}:\n        total += item * "
                f"{rng.randint(2, 9)}\n    return total\n"
                for i in range(5)
            ]
            (directory / f"code-{index:03}.py").write_text("\n\n".join(functions))
    return directory


def tiny_recipe(path: Path, texts: Path, run_dir: Path, **train: Any) -> Path:
    """A recipe that runs through every stage in seconds."""
    settings = {
        "steps": 12,
        "batch_tokens": 256,
        "peak_lr": 3e-3,
        "threads": 1,
        "compile": "off",
        "micro_batch_tokens": 128,
        "checkpoint_every": 4,
        "validate_tokens": 512,
    } | train
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    path.write_text(
        f'name = "tiny"\nseed = 3\nrun_dir = "{run_dir}"\n[corpus]\nholdout = 0.2\n[[corpus.sources]]\nkind = '
        f'"folder"\npath = "{texts}"\n'
        "[tokens]\nvocab_size = 320\ncontext = 32\n[model]\nlayers = 2\nd_model = 32\nheads = 2\n"
        f"[train]\n{lines}\n[evaluate]\nitems = 4\n"
    )
    return path


def lmforge(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Run a command in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["lmforge", *arguments])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory with its recipe beside it (`recipe.toml` one level up)."""
    from lmforge.pipeline import run_stages
    from lmforge.recipe import load_recipe

    base = tmp_path_factory.mktemp("tiny")
    recipe = load_recipe(tiny_recipe(base / "recipe.toml", tiny_texts(base / "texts"), base / "run"))
    run_stages(recipe, recipe.directory)
    return base / "run"
