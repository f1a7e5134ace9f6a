"""Encoding on one core: ours, tiktoken and `tokenizers` with the same vocabulary; and the same ids on a million random
strings.

    python -m bench.speed.encode                      learns 32,768 tokens from the shared English text, then times
    three times five encodings
    python -m bench.speed.encode --strings 1000000    and compares ids with `tokenizers` on random strings, edge cases
    and random bytes
    python -m bench.speed.encode --strings 20000 --transformers PYTHON --tokenizer FILE    compares a tokenizer.json
    (not timed) with what
                                                PreTrainedTokenizerFast of `transformers`, in that Python, makes of the
                                                file

Speeds are of UTF-8 bytes a second of one thread, medians of alternating rounds; lists of Python integers are what all
three give, arrays is our form for shards. The text is LMFORGE_DATA/pretrain (or ../shared/data/pretrain). Writes
bench/results/encode.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tiktoken
import tokenizers

from bench.harness import Results
from bench.speed.bpe import copy_speed, documents, unpack  # the file beside this one
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.tokens.pretokenize import SUPERWORDS, WORDS

RESULTS = Results("encode", packages=("tiktoken", "tokenizers", "numba"))
ODD = [
    *"ab1 2\n\r\t .,_()\u00a0\u2028\u0085\u3000é日٣½\x1c\0🙂'\u0301\ufeff\u200d\U00020000",
    "the",
    " of",
    "\r\n",
    "    ",
    "<|endoftext|>",
    "don't",
    " 1234",
]


def timed(vocab: Tokenizer, texts: list[str], rounds: int) -> dict[str, Any]:
    """Speeds in MB/s and their ratios to tiktoken's; the ids must agree."""
    ranks = {
        vocab.token_bytes(token): token for token in range(vocab.vocab_size) if token not in vocab.special.values()
    }
    peer = tiktoken.Encoding("peer", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    library = tokenizers.Tokenizer.from_str(vocab._content)
    library.encode_special_tokens = True
    ways = {
        "ours, lists": lambda: vocab.encode_batch(texts),
        "ours, arrays": lambda: vocab.encode_arrays(texts),
        "tiktoken": lambda: [peer.encode_ordinary(text) for text in texts],
        "tokenizers": lambda: [found.ids for found in library.encode_batch_fast(texts, add_special_tokens=False)],
    }
    same = ways["ours, lists"]() == ways["tiktoken"]() == ways["tokenizers"]()
    size = sum(len(text.encode()) for text in texts)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    speeds = {name: size / 1e6 / statistics.median(each) for name, each in seconds.items()}
    fresh = Tokenizer(vocab._content)  # nothing remembered yet
    started = time.perf_counter()
    fresh.encode_arrays(texts)
    speeds["ours, arrays, first time"] = size / 1e6 / (time.perf_counter() - started)
    return {
        "text_bytes": size,
        "rounds": rounds,
        "same_ids": same,
        "mb_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
        "ratio_to_tiktoken": {name: round(speed / speeds["tiktoken"], 2) for name, speed in speeds.items()},
        "floor_mb_per_second": round(copy_speed() / 1e6),
        "floor": "copying the bytes once",
    }


def random_strings(rng: random.Random, texts: list[str], number: int) -> list[str]:
    """Of odd characters, of any characters, and cut from texts."""
    batch = []
    for _ in range(number):
        kind, length = rng.randrange(3), rng.randint(1, 24)
        if kind == 0:
            batch.append("".join(rng.choices(ODD, k=length)))
        elif kind == 1:
            points = [
                rng.choice([rng.randrange(0x250), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])
                for _ in range(length)
            ]
            batch.append("".join(map(chr, points)))
        else:
            text = rng.choice(texts)
            start = rng.randrange(len(text))
            batch.append(text[start : start + rng.randint(1, 80)])
    return batch


IN_TRANSFORMERS = """
import json, sys
import transformers
given = json.load(open(sys.argv[2]))
both = {}
for as_text in (True, False):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], split_special_tokens=as_text)
    both[str(as_text)] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given]
back = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in both["True"]]
json.dump({"version": transformers.__version__, "size": len(tokenizer), "ids": both["True"], "back": back,
           "with_special": both["False"], "end": tokenizer.convert_tokens_to_ids("<|endoftext|>")},
          open(sys.argv[3], "w"))
"""


def by_transformers(vocab: Tokenizer, texts: list[str], strings: int, python: str) -> dict[str, Any]:
    """The same strings through `transformers`: ids where special tokens in a text are text, and the text that its
    decoder gives back."""
    given = [*random_strings(random.Random(2), texts, strings), *texts[:20]]
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / each for each in ("tokenizer.json", "given.json", "found.json")]
        vocab.save(files[0])
        files[1].write_text(json.dumps(given))
        subprocess.run([python, "-c", IN_TRANSFORMERS, *map(str, files)], check=True)
        found = json.loads(files[2].read_text())
    ours = vocab.encode_batch(given)
    # elsewhere `transformers` may read special tokens
    plain = [number for number, text in enumerate(given) if "<|" not in text]
    return {
        "transformers": found["version"],
        "strings": len(given),
        "same_size": found["size"] == vocab.vocab_size,
        "end_of_text": found["end"],
        "differing": sum(one != other for one, other in zip(ours, found["ids"], strict=True)),
        "differing_by_default": sum(ours[number] != found["with_special"][number] for number in plain),
        "not_coming_back": sum(one != other for one, other in zip(given, found["back"], strict=True)),
    }


def compared(vocab: Tokenizer, texts: list[str], strings: int) -> dict[str, Any]:
    """Random strings of odd characters, of any characters, and cut from texts: the ids of `tokenizers`; random bytes:
    they come back."""
    library = tokenizers.Tokenizer.from_str(vocab._content)
    library.encode_special_tokens = True
    rng = random.Random(1)
    differing = lost = done = 0
    while done < strings:
        batch = random_strings(rng, texts, min(20_000, strings - done))
        found = vocab.encode_batch(batch)
        differing += sum(
            theirs.ids != ours
            for theirs, ours in zip(library.encode_batch_fast(batch, add_special_tokens=False), found, strict=True)
        )
        lost += sum(vocab.decode(ours) != text for ours, text in zip(found, batch, strict=True))
        done += len(batch)
    generator = np.random.default_rng(1)
    blobs = [
        generator.integers(0, 256, size=int(size), dtype=np.uint8).tobytes()
        for size in generator.integers(1, 64, size=strings // 10)
    ]
    lost += sum(vocab.decode_bytes(vocab.encode_bytes(blob)) != blob for blob in blobs)
    return {"strings": done, "differing": differing, "byte_strings": len(blobs), "not_coming_back": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", type=Path, default=Path("build/english.jsonl"), help="unpacked text, made if it is not there"
    )
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strings", type=int, default=0)
    parser.add_argument(
        "--superwords", action="store_true", help="compare (not time) a vocabulary with merges across spaces"
    )
    parser.add_argument("--transformers", metavar="PYTHON", help="a Python that has transformers")
    parser.add_argument("--tokenizer", type=Path, help="compare this file instead of learning one")
    arguments = parser.parse_args()
    if not arguments.text.exists():
        arguments.text.parent.mkdir(parents=True, exist_ok=True)
        unpack(arguments.text)
    everything = list(documents(arguments.text, 1))
    texts = everything[:: max(1, round(sum(map(len, everything)) / 1e6 / arguments.megabytes))]
    learning = everything[::8] if arguments.superwords else everything
    del everything
    vocab = (
        Tokenizer.load(arguments.tokenizer)
        if arguments.tokenizer
        else train_tokenizer(learning, arguments.vocab, superwords=arguments.superwords)
    )
    pattern = {"pattern": SUPERWORDS if vocab.superwords else WORDS, "vocab_size": vocab.vocab_size}
    if not arguments.superwords and not arguments.transformers:
        RESULTS.publish({"speed": {**pattern, **timed(vocab, texts, arguments.rounds)}})
    if arguments.transformers:
        same = by_transformers(vocab, texts, arguments.strings, arguments.transformers)
        RESULTS.publish({f"in transformers, {vocab.vocab_size}": {"vocab_size": vocab.vocab_size, **same}})
    elif arguments.strings:
        key = "identity, superwords" if arguments.superwords else "identity"
        RESULTS.publish({key: {**pattern, **compared(vocab, texts, arguments.strings)}})


if __name__ == "__main__":
    main()
