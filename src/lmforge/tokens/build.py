"""Documents → vocabulary and token shards: the tokens stage.

corpus/documents ──sample──▶ vocabulary ─┐
                 └──every document───────┴──encode──▶ {split}-NNNNN.bin, {split}-NNNNN.docs.npy, index.json,
                 tokenizer.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.corpus.build import read_documents, read_lines
from lmforge.corpus.splits import SPLITS
from lmforge.errors import InputError
from lmforge.machine import cores
from lmforge.progress import Bar, log
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.documents import encode_lines, is_conversation
from lmforge.tokens.images import has_images
from lmforge.tokens.quality import quality
from lmforge.tokens.shards import FORMAT, INDEX, TOKENIZER, token_dtype
from lmforge.tokens.special_tokens import IMAGE
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.writer import Names, TokenWriter

WORKER_BYTES = 100_000_000  # of text that make another process worth its start (a few seconds)


def build_tokens(recipe: Recipe, corpus_dir: Path, out: Path, known: Tokenizer | None = None) -> dict[str, Any]:
    """Learn the vocabulary from the training split alone (or take `known`), encode every split into
    `out`, return the figures.

    Figures: vocab_size; tokens_, documents_ and bytes_ of train, valid and test; bytes_per_token of the training text
    and bytes_per_token_held_out (UTF-8 bytes over tokens, end-of-text tokens not counted), bytes_per_token_by_genre
    (all splits); missing, how much of the texts the vocabulary has no token for (`Tokenizer.missing`);
    vocabulary_used, the share of the vocabulary that occurs in the training split; sample_bytes the
    vocabulary was learned from; counted_train, the share of the training tokens that count in the loss; quality, see
    `lmforge.tokens.quality`. The same files whatever number of processes encodes.

    Raises:
        InputError: a vocabulary larger than the texts support, a split with less than one row of `tokens.context` + 1
            tokens, a damaged or missing corpus, no permission to write.
        LmforgeError: the disk is full. In every case `out` stays as it was.
    """
    with atomic_directory(out) as folder:
        training = _Training(corpus_dir)
        sample = Sample(training, recipe.tokens.sample_bytes)
        train_bytes = sample.total
        if known is None:
            tokenizer = _learned(recipe, training, sample)
            tokenizer.save(folder / TOKENIZER)
        else:
            tokenizer = known
            tokenizer.save(folder / TOKENIZER)
        workers = recipe.tokens.workers or min(cores(), 1 + train_bytes // WORKER_BYTES)
        names, writers = Names(), {}
        with Bar("tokens", train_bytes / (1 - recipe.corpus.holdout), "B") as bar:
            for split in SPLITS:
                writers[split] = writer = TokenWriter(
                    folder, split, tokenizer.vocab_size, names, grouped=split == "train"
                )
                for batch in encode_lines(
                    read_lines(corpus_dir, split), folder / TOKENIZER, workers if split == "train" else 1
                ):
                    bar.step(writer.add(batch), split)
                writer.close()
                _check_enough(writer, recipe.tokens.context)
        index = _index(tokenizer, names, writers)
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        dtype = token_dtype(tokenizer.vocab_size)
        shards = (np.memmap(folder / file["name"], dtype, "r") for file in writers["train"].files if file["tokens"])
        held_out = (document for split in SPLITS if split != "train" for document in read_documents(corpus_dir, split))
        measured = quality(tokenizer, shards, held_out)
    missing = sum(writer.missing for writer in writers.values())
    if missing:
        what = "bytes without a token" if tokenizer.library and tokenizer.library.byte_level else "unknown tokens"
        log(f"tokens: the texts have {missing:,} {what} in this vocabulary, which cannot be learned or written")
    return {**_figures(tokenizer, writers), "missing": missing, "sample_bytes": sample.bytes, "quality": measured}


def _index(tokenizer: Tokenizer, names: Names, writers: dict[str, TokenWriter]) -> dict[str, Any]:
    """What index.json says."""
    return {
        "format": FORMAT,
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "tokenizer_sha256": tokenizer.sha256,
        "special": tokenizer.special_tokens.to_json(),
        **({"image_mark": tokenizer.special[IMAGE]} if IMAGE in tokenizer.special else {}),
        "sources": list(names.sources),
        "genres": list(names.genres),
        "splits": {
            split: {
                "tokens": writer.tokens,
                "documents": writer.documents,
                "bytes": writer.bytes,
                "uncounted": writer.uncounted,
                "begins": sorted(writer.begins),
                "files": writer.files,
            }
            for split, writer in writers.items()
        },
    }


def _learned(recipe: Recipe, training: _Training, sample: Sample) -> Tokenizer:
    log(
        f"tokens: learning {recipe.tokens.vocab_size:,} tokens from {sample.bytes / 1e6:.1f} MB of "
        f"{sample.total / 1e6:.1f} MB"
    )
    chat = training.conversations if recipe.tokens.chat is None else recipe.tokens.chat
    images = any(source.kind == "images" for source in recipe.corpus.sources)
    with Bar("merges", recipe.tokens.vocab_size, "merge") as bar:
        return train_tokenizer(
            sample,
            recipe.tokens.vocab_size,
            chat,
            recipe.tokens.superwords,
            recipe.tokens.max_ram,
            progress=bar.step,
            images=images,
            single_digits=recipe.tokens.single_digits,
        )


class _Training:
    """The texts of the training split; afterwards `conversations` tells whether any was one."""

    def __init__(self, corpus_dir: Path) -> None:
        self.corpus_dir, self.conversations = corpus_dir, False

    def __iter__(self) -> Iterator[str]:
        for document in read_documents(self.corpus_dir, "train"):
            self.conversations = self.conversations or is_conversation(document)
            yield document["text"].replace(IMAGE, "") if has_images(document) else document["text"]


class Sample:
    """Texts spread evenly over `texts`, read anew each time and never held: every text where all fit in `most` bytes,
    else every 2nd, 4th, 8th … text, the densest that fits, and at least one. `bytes` is the UTF-8 size of the sample,
    `total` that of all."""

    def __init__(self, texts: Iterable[str], most: int) -> None:
        self._texts, self.stride, self.total = texts, 1, 0
        sizes: list[int] = []  # of the texts in the sample so far
        held = 0
        for number, text in enumerate(texts):
            size = len(text.encode("utf-8", "replace"))
            self.total += size
            if number % self.stride:
                continue
            sizes.append(size)
            held += size
            while held > most and len(sizes) > 1:
                self.stride *= 2
                sizes = sizes[::2]
                held = sum(sizes)
        self.bytes = held

    def __iter__(self) -> Iterator[str]:
        return islice(self._texts, 0, None, self.stride)


def _check_enough(writer: TokenWriter, context: int) -> None:
    if writer.tokens < context + 1:
        more = "" if writer.split == "train" else ", raise corpus.holdout"
        raise InputError(
            f"corpus: the {writer.split} split holds {writer.tokens} tokens, less than one row of {context + 1} "
            f"(tokens.context + 1); add texts{more} or lower tokens.context"
        )


def _figures(tokenizer: Tokenizer, writers: dict[str, TokenWriter]) -> dict[str, Any]:
    genres: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for writer in writers.values():
        for genre, (size, tokens) in writer.genres.items():
            genres[genre][0] += size
            genres[genre][1] += tokens
    held_out = [writers[split] for split in SPLITS if split != "train"]
    train = writers["train"]
    return {
        "vocab_size": tokenizer.vocab_size,
        **{f"tokens_{split}": writer.tokens for split, writer in writers.items()},
        **{f"documents_{split}": writer.documents for split, writer in writers.items()},
        **{f"bytes_{split}": writer.bytes for split, writer in writers.items()},
        "bytes_per_token": train.bytes / max(1, train.tokens - train.documents),
        "bytes_per_token_held_out": sum(w.bytes for w in held_out)
        / max(1, sum(w.tokens - w.documents for w in held_out)),
        "bytes_per_token_by_genre": {genre: size / max(1, tokens) for genre, (size, tokens) in sorted(genres.items())},
        "vocabulary_used": float(train.used.mean()),
        "counted_train": 1 - train.uncounted / max(1, train.tokens),
    }
