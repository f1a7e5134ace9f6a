"""The corpus stage against datatrove's stock pipeline, and near-duplicate search alone against datatrove and
datasketch.

    python -m bench.speed.corpus --peer-python PEERS/bin/python [--documents 2000] [--repeats 5] [--data FOLDER]

The same documents (English prose, 5% of them planted near duplicates with up to a fifth of the words edited) go through
ours and theirs in turn, one worker each, every run a process of its own; seconds count from after the imports, medians
are compared. "End to end" is ours with everything on (cleaning, quality and repetition rules, exact and near
duplicates, repeated lines, statistics, analysis off, shuffle, samples) against theirs with Gopher repetition and
quality filters and MinHash. Writes bench/results/corpus.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import Results, public_texts

RESULTS = Results("corpus")
PEER = Path(__file__).parents[1] / "peers" / "corpus_peer.py"
CHARS = 6000  # of a document, at most
VERSIONS = (
    "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('datatrove', 'datasketch')}))"
)
SOURCES = (
    "encyclopedia/wikipedia_squad_train_articles",
    "web/gov_and_project_blogs",
    "stories/tinystories",
    "technical_docs/docs",
)


def documents(data: Path, count: int) -> list[dict[str, str]]:
    """`count` pieces of prose, the sources in turn, and near duplicates of every twentieth: "n17" is one of "17"."""

    def pieces(name: str) -> Iterator[str]:
        with gzip.open(data / "pretrain" / f"{name}.jsonl.gz", "rt") as file:
            for line in file:
                text = json.loads(line)["text"]
                yield from (
                    text[at : at + CHARS] for at in range(0, min(len(text), 5 * CHARS), CHARS) if len(text) - at > 400
                )

    streams, rng = [pieces(name) for name in SOURCES], random.Random(0)
    texts = [next(streams[number % len(streams)]) for number in range(count)]
    pool = texts[0].split()
    made = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    for number in range(0, count, 20):
        words = texts[number].split(" ")
        for at in rng.sample(range(len(words)), int(rng.uniform(0.02, 0.2) * len(words))):
            words[at] = rng.choice(("", rng.choice(pool), f"{words[at]} {rng.choice(pool)}"))
        made.append({"id": f"n{number}", "text": " ".join(words)})
    rng.shuffle(made)
    return made


def ours(what: str, source: Path, work: Path) -> None:
    """One of our runs, in this process; prints what corpus_peer.py prints."""
    import numpy as np

    from lmforge.corpus.build import build_corpus, read_documents
    from lmforge.corpus.overlap import duplicates
    from lmforge.corpus.overlap.words import read_words
    from lmforge.recipe import parse_recipe

    duplicates.signature(read_words("compiled, or read from numba's cache, before the clock starts"))
    usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    read = [json.loads(line) for line in source.open()] if what == "near" else []
    started, before = time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in map(resource.getrusage, usage))
    if what == "pipeline":
        corpus = {"sources": [{"kind": "jsonl", "path": source}], "workers": 1, "analyse_bytes": 0}
        build_corpus(parse_recipe({"corpus": corpus}), work / "corpus")
    else:
        keys, sketches = zip(*(duplicates.signature(read_words(document["text"])) for document in read), strict=True)
        np.stack(sketches).tofile(work / "sketches.bin")
        records = np.stack([np.concatenate(keys), np.repeat(np.arange(len(read), dtype=np.uint64), duplicates.BANDS)])
        where = duplicates.Sketches([work / "sketches.bin"])
        pairs = duplicates.verified_pairs(
            duplicates.candidate_pairs(records[:, np.lexsort(records[::-1])]), where, 0.75
        )
        lost = set(duplicates.resolve(pairs, where, 0.75).dropped.tolist())
    seconds = time.perf_counter() - started
    processor = sum(each.ru_utime + each.ru_stime for each in map(resource.getrusage, usage)) - before
    peak = max(resource.getrusage(who).ru_maxrss for who in usage) * 1024
    kept = (
        [document["id"] for split in ("train", "valid", "test") for document in read_documents(work / "corpus", split)]
        if what == "pipeline"
        else [document["id"] for number, document in enumerate(read) if number not in lost]
    )
    sys.stdout.write(json.dumps({"seconds": seconds, "processor_seconds": processor, "peak_bytes": peak, "kept": kept}))


def run(command: list[str]) -> dict[str, Any]:
    """The JSON that a command prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summary(runs: list[dict[str, Any]], count: int, planted: set[str], originals: set[str]) -> dict[str, Any]:
    """Medians of some runs, and how many of the planted pairs lost one of the two."""
    kept = set(runs[0]["kept"])
    there = {each for each in planted if each in kept or each[1:] in kept}  # the rest fell to a filter, both of them
    found = sum(not (each in kept and each[1:] in kept) for each in there)
    seconds, processor = (statistics.median(each[name] for each in runs) for name in ("seconds", "processor_seconds"))
    return {
        "seconds": round(seconds, 3), "documents_per_second_per_core": round(count / processor, 1),
        "peak_bytes": max(each["peak_bytes"] for each in runs), "kept": len(kept),
        "planted_found": round(found / max(1, len(there)), 4), "originals_lost_alone": len(originals - kept),
        "all_seconds": [round(each["seconds"], 3) for each in runs],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=public_texts())
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        ours(arguments.ours[0], Path(arguments.ours[1]), Path(arguments.ours[2]))
        return
    made = documents(arguments.data, arguments.documents)
    size = sum(len(document["text"].encode()) for document in made)
    planted = {document["id"] for document in made if document["id"].startswith("n")}
    originals = {document["id"] for document in made} - planted - {each[1:] for each in planted}
    peer, me = [str(arguments.peer_python), str(PEER)], [sys.executable, "-m", "bench.speed.corpus", "--ours"]
    entries = {
        "pipeline": (me, "pipeline"),
        "pipeline datatrove": (peer, "pipeline"),
        "near": (me, "near"),
        "near datatrove": (peer, "near"),
        "near datasketch": (peer, "datasketch"),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in", "documents.jsonl")
        source.parent.mkdir()
        source.write_text("".join(json.dumps(document) + "\n" for document in made))
        for _ in range(arguments.repeats):
            for name, (program, what) in entries.items():
                work = Path(folder, "work")
                work.mkdir()
                runs[name].append(run([*program, what, str(source), str(work)]))
                shutil.rmtree(work)
    rows = {name: summary(each, len(made), planted, originals) for name, each in runs.items()}
    rate = {name: row["documents_per_second_per_core"] for name, row in rows.items()}
    result = {
        "peers": run([peer[0], "-c", VERSIONS]),
        "documents": len(made),
        "bytes": size,
        "repeats": arguments.repeats,
        "ratios": {
            "end_to_end_over_datatrove": round(rate["pipeline"] / rate["pipeline datatrove"], 2),
            "peak_memory_over_datatrove": round(
                rows["pipeline"]["peak_bytes"] / rows["pipeline datatrove"]["peak_bytes"], 3
            ),
            "near_over_datatrove": round(rate["near"] / rate["near datatrove"], 2),
            "near_over_datasketch": round(rate["near"] / rate["near datasketch"], 2),
        },
        "rows": rows,
        "floor": "reading and hashing the bytes once (words.read_words, about 200 MB/s): "
        f"{round(len(made) / (size / 200e6))} documents per second per core",
    }
    RESULTS.publish({"run": result})


if __name__ == "__main__":
    main()
