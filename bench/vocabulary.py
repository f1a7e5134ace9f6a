"""How good vocabularies of GPT-2's, cl100k's and o200k's sizes are, learned from the shared English text without every 20th document,
measured on those (lmforge.tokens.quality); with and without merges across spaces.

    python bench/vocabulary.py --sizes 50257 100277 200019

Writes bench/results/vocabulary.json. The published vocabularies themselves need the network and are not compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from bpe import named_documents
from lmforge.progress import say
from lmforge.record import code_version, machine, write_atomic
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.quality import quality

RESULT = Path(__file__).parent / "results" / "vocabulary.json"
EVERY = 20


def measured(learning: list[str], held_out: list[dict[str, Any]], size: int, superwords: bool) -> dict[str, Any]:
    """Learn and judge one vocabulary."""
    tokenizer = train_tokenizer(learning, size, superwords=superwords)
    found = quality(tokenizer, (tokenizer.encode_arrays([text])[0] for text in learning), held_out)
    kept = ("bytes_per_token", "bytes_per_token_by_genre", "fertility", "vocabulary_used", "tokens_unseen", "tokens_rare", "entropy_bits",
            "renyi_efficiency")
    row = {"vocab_size": size, "superwords": superwords, **{name: found[name] for name in kept}}
    say(f"{size:,}{' superwords' if superwords else ''}: {row['bytes_per_token']:.3f} bytes per token held out")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 32768, 50257, 100277, 200019])
    arguments = parser.parse_args()
    everything = list(named_documents())
    held_out = [{"text": text, "genre": genre} for genre, text in everything[::EVERY]]
    learning = [text for number, (_, text) in enumerate(everything) if number % EVERY]
    rows = [measured(learning, held_out, size, superwords) for size in arguments.sizes for superwords in (False, True)]
    result = {
        "held_out_bytes": sum(len(each["text"].encode()) for each in held_out), "vocabularies": rows, "machine": machine(),
        "versions": {"lmforge": code_version(), "python": platform.python_version()},
        "command": shlex.join(["python", "bench/vocabulary.py", *sys.argv[1:]]),
    }
    write_atomic(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
