"""Learning a vocabulary: time and memory beside `tokenizers`, rustbpe and bpeasy, on the shared English text and on ten
times it.

    python -m bench.speed.bpe --times 1 --vocab 32768                 one case: ours, tokenizers, rustbpe, alternating
    python -m bench.speed.bpe --times 10 --vocab 262144 --peers tokenizers
    python -m bench.speed.bpe --times 10 --vocab 262144 --peers tokenizers --more      one more round for that case,
    added to those measured before
    python -m bench.speed.bpe --times 10 --five-million FILE          5,000,000 tokens with merges across spaces:
    learned and written to FILE,
                                                                or, where FILE is there, loaded and round-tripped

The text is LMFORGE_DATA/pretrain (or ../shared/data/pretrain); ten times it is as many documents as ten times its
number, drawn with replacement. Each run is a process of its own that reads the documents as a stream; `peak_bytes` is
that of the whole process. Figures and ratios are of medians over all rounds. Merges are compared one by one. Results
gather in bench/results/bpe.json. bpeasy is taken from the Python that
--bpeasy names.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import Results, public_texts

RESULTS = Results("bpe", packages=("tokenizers", "rustbpe", "numba"))
SEED = 1
MEASURED = ("seconds", "peak_bytes")
LONGEST = 64


def data_folder() -> Path:
    """Where the shared text lies."""
    folder = public_texts() / "pretrain"
    if not folder.is_dir():
        sys.exit(f"error: {folder} is not there; set LMFORGE_DATA to the folder that holds pretrain/")
    return folder


def named_documents() -> Iterator[tuple[str, str]]:
    """(genre, text) of every document of the shared text."""
    for path in sorted(data_folder().rglob("*.gz")):
        if "warc" not in path.parts:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                texts = (
                    (json.loads(line).get("text") for line in file) if ".jsonl" in path.name else iter([file.read()])
                )
                yield from ((path.parent.name, text) for text in texts if text)


def unpack(into: Path) -> int:
    """Write the documents, one JSON string a line, and their offsets; gives back their UTF-8 bytes."""
    size = 0
    offsets = []
    data_folder()  # ends here where there is none, before an empty file stands
    with into.open("wb") as out:
        for _, text in named_documents():
            offsets.append(out.tell())
            out.write(json.dumps(text, ensure_ascii=False).encode() + b"\n")
            size += len(text.encode())
    into.with_suffix(".offsets").write_text(json.dumps(offsets))
    return size


def documents(path: Path, times: int) -> Iterator[str]:
    """The texts; for `times` above 1 that many times their number, drawn with replacement."""
    if times == 1:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
        return
    offsets = json.loads(path.with_suffix(".offsets").read_text())
    with path.open("rb") as file:
        for offset in random.Random(SEED).choices(offsets, k=times * len(offsets)):
            file.seek(offset)
            yield json.loads(file.readline())


def ours(texts: Iterator[str], vocab_size: int) -> dict[str, Any]:
    from lmforge.tokens.bpe import train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size)
    return {"vocab_size": tokenizer.vocab_size, "file": tokenizer._content}


def by_tokenizers(texts: Iterator[str], vocab_size: int) -> dict[str, Any]:
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

    from lmforge.tokens.byte_alphabet import CHARACTERS
    from lmforge.tokens.pretokenize import WORDS
    from lmforge.tokens.special_tokens import END_OF_TEXT

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            max_token_length=LONGEST,
            initial_alphabet=sorted(CHARACTERS),
            show_progress=False,
            special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
        ),
    )
    return {"vocab_size": library.get_vocab_size(), "file": library.to_str()}


def by_rustbpe(texts: Iterator[str], vocab_size: int) -> dict[str, Any]:
    import rustbpe

    from lmforge.tokens.pretokenize import WORDS

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocab_size - 1, pattern=WORDS)
    return {"vocab_size": 1 + len(tokenizer.get_mergeable_ranks())}


def by_bpeasy(texts: Iterator[str], vocab_size: int) -> dict[str, Any]:
    import bpeasy

    pattern = r"[^\r\n\p{L}\p{N}]?[\p{L}]+| ?[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
    return {"vocab_size": 1 + len(bpeasy.train_bpe(texts, pattern, LONGEST - 1, vocab_size - 1))}


TRAINERS = {"ours": ours, "tokenizers": by_tokenizers, "rustbpe": by_rustbpe, "bpeasy": by_bpeasy}


def child(who: str, path: Path, times: int, vocab_size: int, out: Path) -> None:
    """Train once in this process; the file goes to `out`, the figures to stdout. Seconds include imports and, cold,
    compiling."""
    started = time.perf_counter()
    result = TRAINERS[who](documents(path, times), vocab_size)
    seconds = time.perf_counter() - started
    if "file" in result:
        out.write_text(result.pop("file"))
    print(
        json.dumps(
            {
                **result,
                "seconds": round(seconds, 2),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def in_a_process(
    who: str, path: Path, times: int, vocab_size: int, out: Path, python: str = sys.executable
) -> dict[str, Any]:
    command = [python, "-m", "bench.speed.bpe", "--child", who, str(path), str(times), str(vocab_size), str(out)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = {"trainer": who, **json.loads(found.stdout.splitlines()[-1])}
    print(
        f"{times}x, {vocab_size:,}: {who} {row['seconds']} s, {row['peak_bytes'] / 1e6:.0f} MB",
        file=sys.stderr,
        flush=True,
    )
    return row


def compile_once(path: Path) -> None:
    """Have the loops compiled and on disk, as they are from the second run on (the first takes about ten seconds
    more)."""
    short = path.with_name("short.jsonl")
    short.write_text('"ab ab ab"\n')
    in_a_process("ours", short, 1, 258, path.with_name("short.json"))


def merges_of(path: Path) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(path.read_text())["model"]["merges"]]


def case(
    path: Path,
    size: int,
    times: int,
    vocab_size: int,
    peers: list[str],
    rounds: int,
    bpeasy: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Ours and the peers, alternating `rounds` times; medians, ratios to `tokenizers`, and whether the merges are the
    same.

    `before`: the result of earlier rounds of the same case, to which these are added.
    """
    names = ["ours", *peers]
    earlier = {row["trainer"]: row["runs"] for row in before["trainers"]} if before else {}
    rows: dict[str, list[dict[str, Any]]] = {name: [*earlier.get(name, [])] for name in names}
    files = {name: path.with_name(f"{name}.json") for name in names}
    compile_once(path)
    for _ in range(rounds):
        for name in names:
            rows[name].append(
                in_a_process(name, path, times, vocab_size, files[name], bpeasy if name == "bpeasy" else sys.executable)
            )
    best: dict[str, dict[str, Any]] = {
        name: {
            "trainer": name,
            "vocab_size": runs[-1]["vocab_size"],
            **{key: statistics.median(run[key] for run in runs) for key in MEASURED},
            "runs": [{key: run[key] for key in ("vocab_size", *MEASURED)} for run in runs],
        }
        for name, runs in rows.items()
    }
    floor = times * size / copy_speed()
    result: dict[str, Any] = {
        "times": times,
        "vocab_size": vocab_size,
        "text_bytes": times * size,
        "rounds": len(rows["ours"]),
        "trainers": list(best.values()),
        "floor_seconds": round(floor, 3),
        "seconds_to_floor": round(best["ours"]["seconds"] / floor, 1),
    }
    if "tokenizers" in best:
        result |= {
            f"{what}_ratio": round(best["ours"][key] / best["tokenizers"][key], 3)
            for what, key in (("time", "seconds"), ("memory", "peak_bytes"))
        }
        same = merges_of(files["ours"]) == merges_of(files["tokenizers"])
        result["same_merges"] = same and (before or {}).get("same_merges", True)
    return result


def copy_speed() -> float:
    """Bytes a second of copying memory: the text must be read once."""
    import numpy as np

    block = np.ones(1 << 27, dtype=np.uint8)
    started = time.perf_counter()
    block.copy()
    return len(block) / (time.perf_counter() - started)


def peak() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def learn_many(path: Path, times: int, vocab_size: int, out: Path) -> dict[str, Any]:
    """Learn with superwords and write."""
    from lmforge.tokens.bpe import train_tokenizer

    class Again:
        def __iter__(self) -> Iterator[str]:
            return documents(path, times)

    started = time.perf_counter()
    tokenizer = train_tokenizer(Again(), vocab_size, superwords=True)
    tokenizer.save(out)
    return {
        "learn_and_save_seconds": round(time.perf_counter() - started, 1),
        "learn_peak_bytes": peak(),
        "file_bytes": out.stat().st_size,
    }


def load_many(path: Path, out: Path) -> dict[str, Any]:
    """Load with both programs, encode and decode a hundredth of the documents with both."""
    import tokenizers

    from lmforge.tokens.bpe import Tokenizer

    started = time.perf_counter()
    loaded = Tokenizer.load(out)
    load_seconds = time.perf_counter() - started
    texts = [text for number, text in enumerate(documents(path, 1)) if number % 100 == 0]
    loaded.encode_batch(texts[:1])
    started = time.perf_counter()
    tokens = loaded.encode_batch(texts)
    encode_seconds = time.perf_counter() - started
    size = sum(len(text.encode()) for text in texts)
    back = all(loaded.decode(each) == text for each, text in zip(tokens, texts, strict=True))
    ours_peak = peak()
    started = time.perf_counter()
    library = tokenizers.Tokenizer.from_file(str(out))
    library_load = time.perf_counter() - started
    library.encode_special_tokens = True
    same = all(
        found.ids == each
        for found, each in zip(library.encode_batch_fast(texts, add_special_tokens=False), tokens, strict=True)
    )
    return {
        "vocab_size": loaded.vocab_size,
        "load_seconds": round(load_seconds, 1),
        "peak_with_loaded_bytes": ours_peak,
        "tokenizers_load_seconds": round(library_load, 1),
        "text_comes_back": back,
        "same_ids_as_tokenizers": same,
        "bytes_per_token": round(size / sum(map(len, tokens)), 3),
        "encode_mb_per_second": round(size / 1e6 / encode_seconds, 2),
    }


def record(key: str, measured: dict[str, Any]) -> None:
    """Enter one case into the results' file."""
    RESULTS.publish({key: {**RESULTS.figures().get(key, {}), **measured}})


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        who, path, times, vocab_size, out = sys.argv[2:]
        child(who, Path(path), int(times), int(vocab_size), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument(
        "--peers", nargs="*", default=["tokenizers", "rustbpe"], choices=["tokenizers", "rustbpe", "bpeasy"]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--more", action="store_true", help="add the rounds to those of the same case in the results")
    parser.add_argument("--bpeasy", default=sys.executable, help="a Python that has bpeasy")
    parser.add_argument("--five-million", type=Path, metavar="FILE")
    parser.add_argument(
        "--text", type=Path, help="a file this command unpacked before, to unpack it once for several cases"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.text or Path(folder) / "text.jsonl"
        size = unpack(path) if not path.exists() else sum(len(text.encode()) for text in documents(path, 1))
        if arguments.five_million:
            file = arguments.five_million
            record(
                "five_million",
                load_many(path, file) if file.exists() else learn_many(path, arguments.times, 5_000_000, file),
            )
        else:
            key = f"{arguments.times}x {arguments.vocab}"
            before = RESULTS.figures().get(key) if arguments.more else None
            record(
                key,
                case(
                    path,
                    size,
                    arguments.times,
                    arguments.vocab,
                    arguments.peers,
                    arguments.rounds,
                    arguments.bpeasy,
                    before,
                ),
            )


if __name__ == "__main__":
    main()
