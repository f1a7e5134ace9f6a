"""Time to quality on this CPU: tinyshakespeare by characters beside nanoGPT's own CPU command, and our lowest loss in
ten CPU minutes.

    python -m bench.peers.speedrun_cpu [--part beside|lowest|ablations|texts] [--peer .peers/nanoGPT] [--peer-python
    .peers/venv/bin/python]

beside     nanoGPT's command (4 layers, d 128, block 64, batch 12, 2,000 steps) and bench/peers/speedrun.toml in turn,
each a process of its own
           on both cores: seconds of the training steps alone, and of the whole process.
lowest     bench/peers/lowest.toml on one thread: the loss after at most 600 seconds of processor time.
ablations  bench/peers/speedrun.toml with one ingredient taken away at a time, on one thread: processor time and loss.
texts      the same seconds on one thread for nanoGPT's and nanochat's recipes and ours, on longer texts:
bench/peers/peers_cpu.py, which has its own
           results and takes what else stands on the command line (--text english --size small --seconds 300 …).

The text is LMFORGE_DATA/pretrain/books/tinyshakespeare.txt.gz (or ../shared/data/…); its last tenth is the validation
split, as nanoGPT's prepare.py cuts it. Ours goes through `lmforge.train.loop.train`; its loss is over the whole
validation split. One character is one byte, so nats per token are nats per character. nanoGPT's own estimate is over
240 random rows. Writes bench/results/speedrun_cpu.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench.harness import Results
from bench.peers.ours import run_ours

HERE = Path(__file__).resolve().parent
RESULTS = Results("speedrun_cpu")
COMMAND = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
EVALUATES = 250  # steps between nanoGPT's evaluations, which are not counted as training
ABLATIONS: dict[str, dict[str, Any]] = {  # what stands in for the ingredient
    "as it is": {},
    "no n-gram tables": {"model.ngram_rows": 0},
    "no n-gram tables, 4 layers of 128, 200 steps": {
        "model.ngram_rows": 0,
        "model.layers": 4,
        "model.d_model": 128,
        "model.heads": 4,
        "train.steps": 200,
    },
    "tied output": {"model.tied": True},
    "AdamW alone": {"train.optimizer": "adamw", "train.peak_lr": 0.005},
    "relu": {"model.activation": "relu"},
    "no query and key norms": {"model.qk_norm": False},
    "learned positions": {"model.positions": "learned"},
    "rates a third": {"train.peak_lr": 0.0067, "train.matrix_lr": 0.01},
    "betas 0.9, 0.95": {"train.betas": [0.9, 0.95]},
    "constant rate": {"train.final_lr": 1.0},
    "batch 512 then 1024 then 2048": {"train.batch_schedule": [[0, 512], [0.4, 1024], [0.7, 2048]]},
    "batch 768, as nanoGPT": {"train.batch_tokens": 768, "train.steps": 147},
    "context 16 then 32 then 64": {"train.context_schedule": [[0, 16], [0.5, 32], [0.8, 64]]},
    "two layers": {"model.layers": 2},
    "fp32": {"train.precision": "fp32"},
}


def text() -> str:
    """The whole text."""
    path = (
        Path(os.environ.get("LMFORGE_DATA") or HERE.parents[1] / "shared" / "data")
        / "pretrain"
        / "books"
        / "tinyshakespeare.txt.gz"
    )
    if not path.is_file():
        sys.exit(f"error: {path} is not there; set LMFORGE_DATA to the folder that holds pretrain/")
    return gzip.decompress(path.read_bytes()).decode()


def parts() -> dict[str, str]:
    """nanoGPT's splits; its validation text stands for our test split too, which nothing reads."""
    whole = text()
    cut = int(len(whole) * 0.9)
    return {"train": whole[:cut], "valid": whole[cut:], "test": whole[cut:]}


def our_tokens(folder: Path) -> Path:
    """The splits as shards of bytes, through the tokens stage; returns its folder."""
    from lmforge.recipe import parse_recipe
    from lmforge.tokens.build import build_tokens

    documents = folder / "corpus" / "documents"
    documents.mkdir(parents=True)
    for split, content in parts().items():
        line = (
            json.dumps({"id": split, "text": content, "source": "tinyshakespeare", "genre": "books", "meta": {}}) + "\n"
        )
        (documents / f"{split}-00000.jsonl.zst").write_bytes(zstandard.compress(line.encode()))
    build_tokens(parse_recipe({"tokens": {"vocab_size": 257, "context": 64}}), folder / "corpus", folder / "tokens")
    return folder / "tokens"


def their_tokens(peer: Path, folder: Path) -> Path:
    """A copy of nanoGPT with its data as its prepare.py writes it."""
    shutil.copytree(peer, folder, ignore=shutil.ignore_patterns(".git", "assets"))
    data, splits = folder / "data" / "shakespeare_char", parts()
    characters = sorted(set(splits["train"] + splits["valid"]))
    number = {character: index for index, character in enumerate(characters)}
    for name, split in (("train", "train"), ("val", "valid")):
        np.array([number[character] for character in splits[split]], dtype=np.uint16).tofile(data / f"{name}.bin")
    (data / "meta.pkl").write_bytes(
        pickle.dumps({"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": number})
    )
    return folder


def run_theirs(python: Path, folder: Path, threads: int) -> dict[str, float]:
    """One run of nanoGPT's command."""
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [python, "train.py", *COMMAND], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    whole = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"error: nanoGPT failed: {done.stderr[-500:]}")
    steps = [
        (int(step), float(milliseconds) / 1000)
        for step, milliseconds in re.findall(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms", done.stdout)
    ]
    training = [seconds for step, seconds in steps if step % EVALUATES]
    losses = re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", done.stdout)
    assert losses[-1][0] == "2000", losses
    return {
        "seconds": sum(training) * len(steps) / len(training),
        "process_seconds": whole,
        "loss": float(losses[-1][1]),
    }


def beside(arguments: argparse.Namespace, folder: Path, tokens: Path) -> dict[str, Any]:
    """Both sides in turn."""
    theirs = their_tokens(arguments.peer, folder / "nanoGPT")
    rows: dict[str, list[dict[str, Any]]] = {"nanoGPT": [], "ours": []}
    for turn in range(arguments.rounds):
        rows["nanoGPT"].append(run_theirs(arguments.peer_python, theirs, arguments.peer_threads))
        print(json.dumps(rows["nanoGPT"][-1]), flush=True)
        rows["ours"].append(
            run_ours(
                HERE / "speedrun.toml",
                tokens,
                {"train.threads": arguments.threads},
                arguments.threads,
                folder / f"ours{turn}",
            )
        )
        print(json.dumps(rows["ours"][-1]), flush=True)
    pairs = [*zip(rows["ours"], rows["nanoGPT"], strict=True)]
    ratio = {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in ("seconds", "process_seconds")}
    return {"rows": rows, "ours_over_nanogpt": ratio, "reached": all(row["loss"] <= 1.886 for row in rows["ours"])}


def lowest(arguments: argparse.Namespace, folder: Path, tokens: Path) -> dict[str, Any]:
    """The best loss within the processor time."""
    row = run_ours(HERE / "lowest.toml", tokens, json.loads(arguments.set), 1, folder / "lowest")
    print(json.dumps(row), flush=True)
    return row


def ablations(arguments: argparse.Namespace, folder: Path, tokens: Path) -> list[dict[str, Any]]:
    """One row for each ingredient taken away, all in one process, one after another."""
    rows = []
    alone = {"train.threads": 1, "train.micro_batch_tokens": 1024}
    variants = [json.dumps({**alone, **changes}) for changes in ABLATIONS.values()]
    command = [
        sys.executable,
        "-m",
        "bench.peers.ours",
        str(HERE / "speedrun.toml"),
        str(tokens),
        str(folder / "rows"),
        *variants,
    ]
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for (name, changes), line in zip(ABLATIONS.items(), process.stdout, strict=False):
            row = json.loads(line)
            rows.append({"what": name, "changes": changes, **row})
            print(
                f"{name}: {row['loss']:.4f} nats a character, {row['cpu_seconds']:.1f} s, {row['parameters']:,} "
                "parameters",
                flush=True,
            )
    if len(rows) < len(ABLATIONS):
        sys.exit(f"error: ours failed at: {[*ABLATIONS][len(rows)]}")
    return rows


def main() -> None:
    """Run the parts asked for and write what they found beside what others found before on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["beside", "lowest", "ablations", "texts"], action="append")
    parser.add_argument("--peer", type=Path, default=Path(".peers/nanoGPT"), help="a checkout of karpathy/nanoGPT")
    parser.add_argument(
        "--peer-python", type=Path, default=Path(".peers/venv/bin/python"), help="a Python with torch for it"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--threads", type=int, default=2, help="of ours: so many networks side by side, one thread each"
    )
    parser.add_argument(
        "--peer-threads", type=int, default=1, help="of nanoGPT; two took more than twice as long here as one"
    )
    parser.add_argument("--set", default="{}", help="changes to bench/peers/lowest.toml as JSON")
    arguments, rest = parser.parse_known_args()
    wanted = arguments.part or ["beside", "lowest", "ablations", "texts"]
    if rest and "texts" not in wanted:
        parser.error(f"unknown: {' '.join(rest)}")
    if "texts" in wanted:
        from bench.peers import peers_cpu

        peers = peers_cpu.parse(["--peer", str(arguments.peer), "--peer-python", str(arguments.peer_python), *rest])
        wanted = [part for part in wanted if part != "texts"]
        peers_cpu.texts(peers)
    if "beside" in wanted and not (arguments.peer / "train.py").is_file():
        sys.exit(
            f"{arguments.peer}/train.py: not there; put a checkout of karpathy/nanoGPT there or name it with --peer"
        )
    arguments.peer_python = arguments.peer_python.absolute()
    commit = arguments.peer / "COMMIT"
    peer = "karpathy/nanoGPT " + (commit.read_text().strip() if commit.exists() else "unknown commit")
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as temporary:
        tokens = our_tokens(Path(temporary))
        for part in wanted:
            make = {"beside": beside, "lowest": lowest, "ablations": ablations}[part]
            RESULTS.add(part, make(arguments, Path(temporary), tokens), peer=peer)


if __name__ == "__main__":
    main()
