"""The same seconds on one thread for nanoGPT's and nanochat's recipes and ours, on the same texts, to the same held-out
bytes.

    python -m bench.peers.peers_cpu [--text english] [--recipe ours] [--size small] [--seconds 300] [--clock cpu|wall]
    [--core 0]

    text ─corpus, tokens stages─▶ shards ─┬─▶ ours: lmforge.train.loop.train
         (a vocabulary's own shards)      └─▶ train.bin, held-out.npz ─▶ nanoGPT's model.py, nanochat's gpt.py and
         optim.py, in a Python of theirs

Each (text, recipe, size, seconds) is one run; what bench/results/peers_cpu.json has already is not run again (--again
does), and each run stands there as soon as it ends, so that the command may be stopped, and two may go on side by side,
each on a processor of its own (--core).

Each side's code for network, optimizer and rates is its own; the loops around them are here, because neither trains by
the clock. Some steps are timed first and not counted; the number of steps follows from them, and with it the schedule.
Nobody's validation is counted. What is scored are the same bytes for all: the first held-out documents, whole, each
tokenised by the vocabulary of the run, cut into rows of the context one after another; nats of all tokens but the ends
of documents, over UTF-8 bytes. The peers' own vocabularies, 50,257 and 32,768 tokens, would leave most of so short a
training to the output matrix, so both see ours of 4,096; `--vocab` gives them another (257: bytes, as nanoGPT's CPU
command). nanochat's rows are cut from one stream, as the others', not packed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Results
from bench.peers.trainings import CONTEXT, HELD_OUT, VOCABULARY, nanochat, nanogpt, validated

HERE = Path(__file__).resolve().parent
RESULTS = Results("peers_cpu")
HELD_OUT_BYTES = 300_000
OUR_SIZES: dict[str, dict[str, Any]] = {  # beside bench/peers/texts.toml
    "small": {"model.layers": 3, "model.d_model": 192, "model.heads": 3},
    "medium": {},
    "large": {"model.layers": 6, "model.d_model": 320, "model.heads": 5},
}
SIZES = tuple(OUR_SIZES)
RECIPES = ("ours", "nanoGPT", "nanochat")
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def corpora() -> dict[str, dict[str, Any]]:
    """The recipes of the texts."""
    data = Path(os.environ.get("LMFORGE_DATA") or HERE.parents[1] / "shared" / "data") / "pretrain"
    english = [
        {"kind": "jsonl", "path": str(data / name), "genre": genre}
        for name, genre in (
            ("stories", "stories"),
            ("encyclopedia/wikipedia_squad_train_articles.jsonl.gz", "encyclopedia"),
        )
    ]
    return {
        "python-library": {"sources": [{"kind": "python-library", "genre": "code"}]},
        "english": {"sources": english},
    }


def prepare(text: str, vocabulary: int, work: Path) -> Path:
    """Shards of a text by a vocabulary, the same as one file for the peers, and the held-out rows; made once."""
    from lmforge.corpus.build import build_corpus, read_documents
    from lmforge.recipe import parse_recipe
    from lmforge.tokens.bpe import Tokenizer
    from lmforge.tokens.build import build_tokens
    from lmforge.tokens.shards import Shards

    place = work / text / str(vocabulary)
    tokens = {"vocab_size": vocabulary, "context": CONTEXT, "sample_bytes": 16_000_000}
    recipe = parse_recipe({"corpus": {**corpora()[text], "analyse_bytes": 0}, "tokens": tokens})
    with locked(work / f"{text}.lock"):  # two commands side by side make it once
        if not (work / text / "corpus").exists():
            build_corpus(recipe, work / text / "corpus")
        if not (place / HELD_OUT).exists():
            build_tokens(recipe, work / text / "corpus", place / "tokens")
            shards = Shards.open(place / "tokens", "train")
            shards.read(0, shards.tokens).astype(np.uint16).tofile(place / "train.bin")
            tokenizer, stream, size = Tokenizer.load(place / "tokens" / "tokenizer.json"), [0], 0
            for document in read_documents(work / text / "corpus", "valid"):
                stream += [*tokenizer.encode(document["text"]), 0]
                size += len(document["text"].encode())
                if size >= HELD_OUT_BYTES:
                    break
            stream += [0] * (-(len(stream) - 1) % CONTEXT)
            inputs, targets = np.array(stream[:-1]).reshape(-1, CONTEXT), np.array(stream[1:]).reshape(-1, CONTEXT)
            np.savez(place / HELD_OUT, inputs=inputs, targets=np.where(targets == 0, -1, targets), bytes=size)
    return place


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def theirs(side: str, arguments: argparse.Namespace, data: Path, size: str) -> dict[str, Any]:
    """One training of a peer, in its own process."""
    checkout = arguments.peer if side == "nanoGPT" else arguments.nanochat
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NANOCHAT_DTYPE": arguments.dtype}
    command = [
        arguments.peer_python,
        "-m",
        "bench.peers.peers_cpu",
        "--worker",
        side,
        str(checkout.absolute()),
        str(data),
        size,
        str(arguments.seconds),
        arguments.clock,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {side} {size}: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(arguments: argparse.Namespace, data: Path, size: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One training of ours, in its own process, and the model it leaves scored like the others. A short one first says
    how many steps fit."""
    from bench.peers.ours import run_ours

    key = "cpu_seconds" if arguments.clock == "cpu" else "seconds"
    settings = {**OUR_SIZES[size], "train.threads": 1, "train.validate_tokens": CONTEXT, **changes}
    with tempfile.TemporaryDirectory() as temporary:
        count = 24
        while True:
            row = run_ours(
                HERE / "texts.toml",
                data / "tokens",
                {**settings, "train.steps": count},
                1,
                Path(temporary) / str(count),
            )
            if row[key] > 0.9 * arguments.seconds or count >= (steps := int(arguments.seconds / row[key] * count)):
                break
            # The first steps are slower than the rest: a second trial of a twentieth of the time, then the run.
            count = max(count + 1, steps // 20 if count == 24 and steps > 1000 else steps)
        nats = our_nats(Path(temporary) / str(count) / "0" / "model", data)
    kept = {name: row[name] for name in ("steps", "tokens", "parameters", "cpu_seconds")}
    return {**kept, "spent": row[key], "nats": nats, "changes": changes}


def our_nats(model: Path, data: Path) -> float:
    """The sum over the held-out rows."""
    import torch

    from lmforge.formats.native import load_model
    from lmforge.generate.score import token_nats

    network = load_model(model).eval()
    return validated(data, lambda inputs, targets: float(token_nats(network, inputs, targets).to(torch.float64).sum()))


def run(arguments: argparse.Namespace, text: str, side: str, size: str) -> None:
    """One run, and its row in the results."""
    changes = json.loads(arguments.set) if side == "ours" else {}
    vocabulary = arguments.vocab or (our_vocabulary() if side == "ours" else VOCABULARY)
    vocabulary = changes.pop("tokens.vocab_size", vocabulary)
    about = {
        "text": text,
        "recipe": side,
        "size": size,
        "seconds": arguments.seconds,
        "clock": arguments.clock,
        "vocabulary": vocabulary,
        **({"dtype": arguments.dtype} if side == "nanochat" else {}),
    }
    known = [row for row in stored() if about.items() <= row.items() and not changes]
    if known and not arguments.again:
        print(f"known: {json.dumps(known[-1])}", flush=True)
        return
    data = prepare(text, vocabulary, arguments.work)
    row = ours(arguments, data, size, changes) if side == "ours" else theirs(side, arguments, data, size)
    row = {
        **about,
        "bits_per_byte": row["nats"] / math.log(2) / int(np.load(data / HELD_OUT)["bytes"]),
        **row,
    }
    print(json.dumps(row), flush=True)
    if not changes and not arguments.dry:
        store(row)


def our_vocabulary() -> int:
    """Of bench/peers/texts.toml."""
    from lmforge.recipe import load_recipe

    return load_recipe(HERE / "texts.toml").tokens.vocab_size


def stored() -> list[dict[str, Any]]:
    """The rows so far of this machine; a row that another machine made is measured again."""
    from lmforge import machine

    here = machine.describe()
    label = f"{here['processor']}, {here['cores']} cores, {here['capability']}"
    return [row["figures"] for name, row in RESULTS.rows().items() if name != "compared" and row["machine"] == label]


def store(row: dict[str, Any]) -> None:
    """Add a row in place of the one like it, and the comparison of what there is."""
    RESULTS.add(f"{row['text']} {row['recipe']} {row['size']} {row['seconds']:g} s {row['clock']}", row)
    RESULTS.add("compared", compared(stored()))


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each text and time the best of each recipe's sizes, and by how much fewer bits ours needs."""
    found = []
    for text, seconds, clock in sorted({(row["text"], row["seconds"], row["clock"]) for row in rows}):
        alike = [row for row in rows if (row["text"], row["seconds"], row["clock"]) == (text, seconds, clock)]
        best = {
            side: min(([row["bits_per_byte"], row["size"]] for row in alike if row["recipe"] == side), default=None)
            for side in RECIPES
        }
        own = best["ours"]
        fewer = {side: 1 - own[0] / each[0] for side, each in best.items() if own and each and side != "ours"}
        found.append({"text": text, "seconds": seconds, "clock": clock, "best": best, "fewer_bits_than": fewer})
    return found


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", choices=["english", "python-library"], nargs="+", default=["english", "python-library"]
    )
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=300, help="training time of each run")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="cpu", help="what the seconds are of: the processor, or the wall"
    )
    parser.add_argument("--core", type=int, help="the processor to stay on (default: any)")
    parser.add_argument("--again", action="store_true", help="run what is known already, too")
    parser.add_argument("--dry", action="store_true", help="keep no result")
    parser.add_argument("--vocab", type=int, help="another vocabulary than the recipe's")
    parser.add_argument(
        "--set", default="{}", help="changes to bench/peers/texts.toml as JSON, for trials: their rows are not kept"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of nanochat")
    parser.add_argument("--peer", type=Path, default=Path(".peers/nanoGPT"), help="a checkout of karpathy/nanoGPT")
    parser.add_argument(
        "--nanochat", type=Path, default=Path(".peers/nanochat"), help="a checkout of karpathy/nanochat"
    )
    parser.add_argument(
        "--peer-python", type=Path, default=Path(".peers/venv/bin/python"), help="a Python with torch for both"
    )
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / "runs" / "peers_cpu", help="where texts and shards are kept"
    )
    arguments = parser.parse_args(argv)
    for checkout, file in ((arguments.peer, "model.py"), (arguments.nanochat, "nanochat/gpt.py")):
        side = "nanoGPT" if file == "model.py" else "nanochat"
        if side in arguments.recipe and not (checkout / file).is_file():
            sys.exit(f"error: {checkout}/{file}: not there; put a checkout of karpathy/{side} there")
    arguments.peer_python = arguments.peer_python.absolute()
    return arguments


def texts(arguments: argparse.Namespace) -> None:
    """Every run asked for that is not known, and then the comparison."""
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})  # and of the processes started from here
    for text in arguments.text:
        for size in arguments.size:
            for side in arguments.recipe:
                run(arguments, text, side, size)
    for row in compared(stored()):
        print(json.dumps(row), flush=True)


def worker(side: str, folder: str, data: str, size: str, seconds: str, clock: str) -> None:
    """A peer's training, inside its own Python."""
    import torch

    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr  # what the peers print is not the answer
    result = {"nanoGPT": nanogpt, "nanochat": nanochat}[side](folder, Path(data), size, float(seconds), CLOCKS[clock])
    out.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        texts(parse())
