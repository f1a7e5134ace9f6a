"""How good vocabularies of GPT-2's, cl100k's and o200k's sizes are, learned from the shared English text without every
20th document, measured on those (lmforge.tokens.quality); some with merges across spaces; and the published
vocabularies on the same documents.

    python -m bench.quality.vocabulary --sizes 32768 50257 100277 200019 --superwords 200019 --published r50k_base
    cl100k_base o200k_base

The published ones are those that tiktoken finds in TIKTOKEN_CACHE_DIR without the network (it checks their hashes).
r50k_base is GPT-2's. Writes bench/results/vocabulary.json, after each vocabulary.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import tiktoken

from bench.harness import Results
from bench.speed.bpe import named_documents
from lmforge.progress import log
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.quality import quality

RESULTS = Results("vocabulary", packages=("tiktoken",))
EVERY = 20


class Published:
    """One of tiktoken's vocabularies as `quality` looks at one; ids without a token count as special."""

    def __init__(self, name: str) -> None:
        self.peer = tiktoken.get_encoding(name)
        self.vocab_size = self.peer.n_vocab
        ordinary = {self.peer.encode_single_token(each) for each in self.peer.token_byte_values()}
        self.special = {str(token): token for token in range(self.vocab_size) if token not in ordinary}

    def encode_arrays(self, texts: list[str]) -> tuple[Any]:
        return (self.peer.encode_to_numpy(texts[0], disallowed_special=()),)

    def token_bytes(self, token: int) -> bytes:
        return self.peer.decode_single_token_bytes(token)


def measured(tokenizer: Any, learning: list[str], held_out: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Judge one vocabulary."""
    found = quality(
        tokenizer, (np.asarray(tokenizer.encode_arrays([text])[0], dtype=np.int64) for text in learning), held_out
    )
    kept = (
        "bytes_per_token",
        "bytes_per_token_by_genre",
        "fertility",
        "fertility_by_genre",
        "vocabulary_used",
        "tokens_unseen",
        "tokens_rare",
        "rare_below",
        "rare_examples",
        "entropy_bits",
        "renyi_efficiency",
    )
    row = {"name": name, "vocab_size": tokenizer.vocab_size, **{figure: found[figure] for figure in kept}}
    log(f"{name} {tokenizer.vocab_size:,}: {row['bytes_per_token']:.3f} bytes per token held out")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32768, 50257, 100277, 200019])
    parser.add_argument(
        "--superwords", type=int, nargs="*", default=[200019], help="sizes to learn with merges across spaces"
    )
    parser.add_argument("--published", nargs="*", default=[], help="names of tiktoken's, found in TIKTOKEN_CACHE_DIR")
    arguments = parser.parse_args()
    everything = list(named_documents())
    held_out = [{"text": text, "genre": genre} for genre, text in everything[::EVERY]]
    learning = [text for number, (_, text) in enumerate(everything) if number % EVERY]
    rows: list[dict[str, Any]] = []
    result = {
        "held_out_bytes": sum(len(each["text"].encode()) for each in held_out),
        "vocabularies": rows,
    }
    given = [("ours", size) for size in arguments.sizes] + [(name, 0) for name in arguments.published]
    for name, size in [*given, *(("ours, superwords", size) for size in arguments.superwords)]:
        tokenizer = train_tokenizer(learning, size, superwords=name.endswith("superwords")) if size else Published(name)
        rows.append(measured(tokenizer, learning, held_out, name))
        RESULTS.add("run", result)


if __name__ == "__main__":
    main()
