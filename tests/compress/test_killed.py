"""A chain that is killed without warning, wherever it is, goes on to the files of one that was left alone.

python -m tests.compress.test_killed FOLDER SEED      the whole proof in an empty folder, told as JSON
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmforge.compress import chain, feedback, measure, weight_only
from lmforge.formats.native import CONFIG, TENSORS, TOKENIZER, model_tensors, write_model
from lmforge.model.gpt import GPT
from lmforge.recipe import parse_recipe
from lmforge.record import atomic_directory
from lmforge.tokens.loader import Batch
from tests.compress.conftest import plain_model

STEPS = [
    {"method": "prune", "kind": "structured", "units": 0.25, "heal": {"steps": 6, "rows": 4}},
    {"method": "factorize", "matrices": ["ff.up"], "ratio": 1.5},
    {"method": "distil", "steps": 12, "rows": 4},
    {"method": "sparsify", "share": 0.5, "scope": "global", "matrices": ["ff.up", "ff.down"]},
    {"method": "quantize", "kind": "weights", "bits": 4, "group": 16, "rounding": "feedback"},
]
MOMENTS = 5
LAYER = "blocks.1.attention.qkv"


def draw(number: int) -> Batch:
    tokens = np.random.default_rng(number).integers(300, size=(8, 33))
    return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), None)


def run(folder: Path) -> None:
    """The chain on a small network, in this process."""
    whole = measure.measure
    chain.measure = lambda models: whole(models, seconds=0.05)  # type: ignore[attr-defined]
    chain.peak_memory = lambda directory: None  # type: ignore[assignment]
    if not (folder / "model").exists():
        model = plain_model()
        (folder / "tokenizer.json").write_text("{}")
        with atomic_directory(folder / "model") as directory:
            write_model(directory, model.config, model_tensors(model), folder / "tokenizer.json")
    recipe = parse_recipe({"compress": {"steps": STEPS}})
    chain.compress(recipe, folder / "model", folder / "compressed", draw, bits)


def bits(model: GPT) -> dict[str, float]:
    return {"bits_per_byte": 1.0 + float(sum(each.detach().abs().sum() for each in model.parameters()))}


def hashes(folder: Path) -> dict[str, str]:
    files = (TENSORS, CONFIG, TOKENIZER)
    return {name: hashlib.sha256((folder / "compressed" / name).read_bytes()).hexdigest() for name in files}


def forked(work: Callable[[], None], seconds: float | None = None) -> bool:
    """Whether `work`, in a process of its own, came to its end before it was killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:  # no test framework below this line
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def killed_in_layer(folder: Path, layer: str) -> None:
    """The chain, killed among the columns of a layer that is rounded with feedback."""
    own, codes = weight_only._round_layer, feedback.to_codes
    columns = 0

    def counted(*arguments: Any) -> Any:
        nonlocal columns
        columns += 1
        if columns == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return codes(*arguments)

    def rounded(model: GPT, name: str, *arguments: Any) -> float:
        if name == layer:
            feedback.to_codes = counted
        return own(model, name, *arguments)

    weight_only._round_layer = rounded  # type: ignore[assignment]
    run(folder)


def proof(folder: Path, seed: int) -> dict[str, Any]:
    """Hashes of an undisturbed chain, of one killed inside a layer, and of others killed at random moments; how often
    each was killed, and the layers that were there when the first went on."""
    chance, begun = random.Random(seed), time.perf_counter()
    for name in ("whole", "layer"):
        (folder / name).mkdir()
    assert forked(lambda: run(folder / "whole"))
    seconds = time.perf_counter() - begun
    result: dict[str, Any] = {"whole": hashes(folder / "whole"), "killed": 0, "random": [], "seconds": seconds}
    result["in_layer"] = not forked(lambda: killed_in_layer(folder / "layer", LAYER))
    result["kept"] = sorted(file.stem for file in (folder / "layer").rglob("layers-*/*.safetensors"))
    assert forked(lambda: run(folder / "layer"))
    result["layer"] = hashes(folder / "layer")
    while result["killed"] < MOMENTS:
        here = folder / f"random {len(result['random'])}"
        here.mkdir()
        result["killed"] += not forked(lambda here=here: run(here), chance.random() * seconds)  # type: ignore[misc]
        assert forked(lambda here=here: run(here))  # type: ignore[misc]
        result["random"].append(hashes(here))
    return result


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_killed_chain_goes_on_to_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", __name__, str(tmp_path), str(random.SystemRandom().randrange(10**6))]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert told.returncode == 0, told.stderr[-4000:]
    result = json.loads(told.stdout.splitlines()[-1])
    assert result["in_layer"]
    assert len(result["kept"]) > 3
    assert LAYER not in result["kept"]
    assert result["killed"] == MOMENTS
    for each in (result["layer"], *result["random"]):
        assert each == result["whole"], command


if __name__ == "__main__":
    print(json.dumps(proof(Path(sys.argv[1]), int(sys.argv[2]))))
