"""`lmforge new TEXTS`: a recipe sized to these texts and this machine.

texts ─look at 2 MB─▶ kind, field, bytes ─▶ vocabulary, context, holdout ─┐
machine ─▶ operations in five minutes ────────────────────────────────────┴─▶ layers, width, batch, steps ─▶ TOML
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmforge.corpus.clean.filters import why_dropped
from lmforge.corpus.normalise import clean
from lmforge.corpus.overlap.duplicates import text_digest
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.files import NOT_TEXTS, walk
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.sources.records import JSONL, PARQUET, text_field_of
from lmforge.corpus.sources.texts import CODE, MARKUP, PROSE
from lmforge.corpus.sources.unfold import COMPRESSED
from lmforge.corpus.splits import split_at, split_bounds, unit
from lmforge.errors import InputError
from lmforge.model.gpt import GPTConfig
from lmforge.plan.cost import TRAINING, flops_per_token, training_bytes
from lmforge.plan.hardware import Hardware
from lmforge.plan.simulate import PROCESS_BYTES, expected_utilization
from lmforge.recipe import Corpus, Source, SourceKind, parse_recipe
from lmforge.tokens.bpe import train_tokenizer

BUDGET_SECONDS = 300  # of training
# repeating text further teaches little (Muennighoff et al. 2023, section 5: 4 are as good as new, 40 worth nothing)
MOST_EPOCHS = 10
# of the blocks' matrices, as in recipes/laptop.toml (4.6); Hoffmann et al. 2022 find 20 for large networks
TOKENS_PER_PARAMETER = 4
LOOKED_AT = 2_000_000  # bytes of text read; a smaller corpus is read whole and measured exactly
UNMEASURED_FLOPS = 3e10  # of a core or two, where the machine's speed was not measured
LARGEST_BYTES_PER_TOKEN = 6  # of usual text with a small vocabulary; a split must hold a row even then
LEAST_VOCABULARY = 257  # every byte and the end of text
KNESER_NEY_BYTES = 300_000_000  # text beyond which the n-gram baseline takes longer than the model
MICRO_BATCH = 16_384  # tokens at once: larger ones gain no speed and take memory
SHAPES = (  # layers, width
    (2, 64),
    (4, 64),
    (4, 128),
    (6, 192),
    (6, 256),
    (8, 320),
    (8, 384),
    (10, 512),
    (12, 640),
    (12, 768),
    (16, 1024),
    (20, 1280),
    (24, 1536),
)
SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "folder": tuple(PROSE | MARKUP | CODE),
    "jsonl": JSONL,
    "parquet": PARQUET,
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """What is there, as far as it was looked at."""

    source: Source
    bytes: int  # of text, about
    vocab_size: int
    context: int
    holdout: float
    train_tokens: int  # about
    others: str  # files of other kinds, in words


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network and how long it trains."""

    vocab_size: int
    layers: int
    width: int
    batch_tokens: int
    steps: int
    seconds: float


def recipe_for(texts: Path, hardware: Hardware) -> str:
    """The TOML of a recipe for `texts` (a folder, a text, JSONL or Parquet file) that trains about `BUDGET_SECONDS`
    here.

    Raises:
        InputError: nothing readable there, broken files, or too little text to hold some of it out.
    """
    found = look_at(texts)
    shape = choose_shape(found, hardware)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", texts.resolve().stem).strip("-._") or "model"
    text = _toml(name, found, shape, hardware)
    parse_recipe(tomllib.loads(text), where="the new recipe")
    return text


# The texts


def look_at(texts: Path) -> Texts:
    """What kind of texts these are, about how many, and what vocabulary, context and holdout they support."""
    kind, others, stored, packed = _kind_of(texts)
    path = texts.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{texts!r}: a path that is not UTF-8 cannot stand in a recipe; rename it") from error
    source = Source(kind=kind, path=path, text_field=_text_field(kind, path))
    documents, read, whole = [], 0, True
    for document in iter_documents(source):
        documents.append(document)
        read += len(document["text"].encode("utf-8", "replace"))
        if read > LOOKED_AT:
            whole = False
            break
    held = [text for text in (clean(document["text"]) for document in documents) if why_dropped(text, Corpus()) is None]
    if not held:
        raise InputError(
            f"{texts}: no usable text in it ({len(documents)} documents, {read} bytes looked at); "
            f"documents need at least {Corpus().min_chars} characters of text that does not repeat itself"
        )
    size = read if whole else max(read, round(stored * (3.5 if packed else 1)))
    vocabulary = vocabulary_for(size)
    if whole:
        holdout, context, in_train = _split(texts, held)
        vocabulary, tokens = _supported(in_train, vocabulary)
    else:
        holdout, context = 0.05, 256
        tokens = round(size * (1 - holdout) / bytes_per_token(vocabulary))
    return Texts(source, size, vocabulary, context, holdout, tokens, others)


def vocabulary_for(text_bytes: int) -> int:
    """The power of two nearest to the root of the bytes: 1 MB → 1,024, 30 MB → 4,096, 1 GB → 32,768; 512 to 65,536."""
    return 1 << min(16, max(9, round(math.log2(max(1, text_bytes)) / 2)))


def bytes_per_token(vocab_size: int) -> float:
    """About how many bytes of usual text a token of a byte-level BPE stands for: 2.4 at 1,024, 3.1 at 4,096, 4.2 at
    32,768."""
    return 0.36 * math.log2(vocab_size) - 1.2


def _kind_of(texts: Path) -> tuple[SourceKind, str, int, bool]:
    """(the kind that most bytes are of, the other kinds in words, bytes stored, whether they are compressed)."""
    sizes: Counter[SourceKind] = Counter()
    packed: Counter[SourceKind] = Counter()
    if not texts.exists():
        raise InputError(f"{texts}: does not exist; give a folder of texts, a text, .jsonl or .parquet file")
    for path in [texts] if texts.is_file() else _walk(texts):
        fallback: SourceKind | None = "folder" if texts.is_file() else None
        kind = next((kind for kind, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), fallback)
        if kind is not None and (path.exists() or not path.is_symlink()):
            size = path.stat().st_size
            sizes[kind] += size
            packed[kind] += size * path.name.lower().endswith((*COMPRESSED, *PARQUET))
    if not sum(sizes.values()):
        raise InputError(
            f"{texts}: no text in it; expected files ending in .txt .md .py … (text and source code), .jsonl or "
            ".parquet"
        )
    (kind, size), *others = sizes.most_common()
    words = ", ".join(f"{other} ({more:,} bytes)" for other, more in others)
    return kind, words, size, packed[kind] > size / 2


def _walk(folder: Path) -> list[Path]:
    return [file.path for file in walk(folder, folder, ("",), Counter(), NOT_TEXTS)]


def _text_field(kind: SourceKind, path: Path) -> str:
    """The field that holds the text or the conversation, by the first record."""
    if kind == "folder":
        return "text"
    files = (
        [path] if path.is_file() else sorted(file for file in _walk(path) if file.name.lower().endswith(SUFFIXES[kind]))
    )
    record = _first_record(kind, files[0])
    return text_field_of(record)


def _first_record(kind: SourceKind, file: Path) -> dict[str, Any]:
    """The first record, {} where it cannot be read: reading the documents will say what is wrong."""
    try:
        if kind == "jsonl":
            record = json.loads(next((line for _, line in lines_of(file) if line.strip()), b"{}"))
        else:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(file) as opened:
                batch = next(opened.iter_batches(batch_size=1), None)
                record = batch.to_pylist()[0] if batch is not None and len(batch) else {}
    except (ValueError, OSError, RecursionError):  # Arrow's errors are ValueErrors and OSErrors
        return {}
    return record if isinstance(record, dict) else {}


def _split(texts: Path, held: list[str]) -> tuple[float, int, list[str]]:
    """(holdout, context, training texts): the longest context of which every split, by hash, holds a few rows."""
    distinct = {text_digest(text): text for text in held}
    for context in (256, 128, 64, 32, 16):
        least = 2 * (context + 1) * LARGEST_BYTES_PER_TOKEN
        for holdout in (0.05, 0.1, 0.2, 0.3):
            where = {unit(digest[:8]): text for digest, text in distinct.items()}
            bounds = split_bounds(holdout, functools.partial(_in_one, list(where)), Counter)
            parts: dict[str, list[str]] = {"valid": [], "test": [], "train": []}
            for place, text in where.items():
                parts[split_at(place, bounds)].append(text)
            sizes = {name: sum(len(text.encode()) for text in part) for name, part in parts.items()}
            if min(sizes.values()) >= least and sizes["train"] >= 0.3 * sum(sizes.values()):
                return holdout, context, parts["train"]
    total = sum(len(text.encode()) for text in distinct.values())
    raise InputError(
        f"{texts}: {len(distinct)} distinct documents of {total:,} bytes are too few to train on and hold some out; "
        "add texts or split them into more files"
    )


def _in_one(places: list[float]) -> list[NDArray[np.float64]]:
    return [np.array(places, np.float64)]


def _supported(train: list[str], wanted: int) -> tuple[int, int]:
    """(vocabulary, tokens of these texts with it): `wanted`, or three quarters of it, and so on, until the texts hold
    enough pairs."""
    while True:
        try:
            tokenizer = train_tokenizer(train, wanted)
            return tokenizer.vocab_size, sum(1 + len(tokenizer.encode(text)) for text in train)
        except InputError:
            if wanted == LEAST_VOCABULARY:
                raise
            wanted = max(LEAST_VOCABULARY, wanted * 3 // 4)


# The network


def choose_shape(full: Texts, hardware: Hardware) -> Shape:
    """The largest of `SHAPES` that both the time and the text are enough for, with vocabulary, batch and steps to fill
    the time."""
    chosen = None
    for layers, width in SHAPES:
        # Predicting among V tokens must not take more than the blocks do: V·D at most 12·layers·D².
        vocabulary = min(full.vocab_size, 1 << int(math.log2(12 * layers * width)))
        longer = bytes_per_token(full.vocab_size) / bytes_per_token(vocabulary)
        found = dataclasses.replace(full, vocab_size=vocabulary, train_tokens=round(full.train_tokens * longer))
        config = _config(found, layers, width)
        matrices = 12 * layers * width**2
        tokens, seconds = _affordable(found, hardware, config)
        batch = _batch(found, tokens)
        memory = (
            sum(training_bytes(config, min(batch, MICRO_BATCH), "muon", hardware.gpu is not None).values())
            + PROCESS_BYTES
        )
        if chosen and (
            tokens < TOKENS_PER_PARAMETER * matrices / math.sqrt(2) or memory > hardware.device_memory_bytes / 2
        ):
            break
        chosen = Shape(vocabulary, layers, width, batch, max(10, round(tokens / batch)), seconds)
    assert chosen is not None
    return chosen


def _config(found: Texts, layers: int, width: int) -> GPTConfig:
    heads = _heads(width)
    return GPTConfig(
        found.vocab_size,
        found.context,
        layers,
        width,
        heads,
        heads,
        4 * width,
        "relu2",
        "layernorm",
        "rope",
        qk_norm=True,
        ngram_rows=_ngram_rows(found),
    )


def _heads(width: int) -> int:
    return width // (64 if width >= 256 else 32)


def _ngram_rows(found: Texts) -> int:
    """A row for every eighth token of the text, as a power of two; 256 to 32,768."""
    return 1 << min(15, max(8, round(math.log2(max(1, found.train_tokens / 8)))))


def _affordable(found: Texts, hardware: Hardware, config: GPTConfig) -> tuple[int, float]:
    """(tokens that the budget pays for, at most `MOST_EPOCHS` times the text; the seconds they take)."""
    speed = (hardware.matrix_flops or UNMEASURED_FLOPS) * expected_utilization(config, hardware.gpu is not None)
    per_token = TRAINING * sum(flops_per_token(config, config.context).values()) / speed
    tokens = min(BUDGET_SECONDS / per_token, MOST_EPOCHS * found.train_tokens)
    return max(found.context, int(tokens)), tokens * per_token


def _batch(found: Texts, tokens: int) -> int:
    """About a thousandth of all tokens, a power of two of whole rows; 2,048 to 262,144, and at most a quarter of the
    text."""
    wanted = min(max(tokens / 1000, 2048), 262_144, max(found.context, found.train_tokens / 4))
    return max(found.context, 1 << int(math.log2(max(1, wanted))))


# The text of the recipe


def _toml(name: str, found: Texts, shape: Shape, hardware: Hardware) -> str:
    epochs = shape.steps * shape.batch_tokens / max(1, found.train_tokens)
    speed = f"{hardware.matrix_flops / 1e9:,.0f} GFLOP/s measured" if hardware.matrix_flops else "speed not measured"
    tasks = ["bits_per_byte", "completions_parse", "generation_speed"]
    evaluate = (
        ""
        if found.bytes <= KNESER_NEY_BYTES
        else f"""
[evaluate]
tasks = {json.dumps(tasks)}  # kneser_ney would take longer on so much text than training
"""
    )
    field = f"\ntext_field = {_quoted(found.source.text_field)}" if found.source.text_field != "text" else ""
    others = (
        f"\n# Also there, and not used: {found.others}. Add another [[corpus.sources]] to use them.\n"
        if found.others
        else ""
    )
    minutes = max(1, round(shape.seconds / 60))
    micro = (
        f"micro_batch_tokens = {MICRO_BATCH}  # what is in memory at once\n" if shape.batch_tokens > MICRO_BATCH else ""
    )
    rate = 3e-3 * min(1.0, 256 / shape.width)
    return f"""# Written by `lmforge new` for about {found.bytes / 1e6:,.3g} MB of text
# and this machine: {hardware.device}, {hardware.device_memory_bytes / 2**30:.1f} GiB, {speed}.
name = {_quoted(name)}
seed = 1
{others}
[corpus]
holdout = {found.holdout}  # share kept out of training: enough for several rows in each of its parts

[[corpus.sources]]
kind = {_quoted(found.source.kind)}
path = {_quoted(str(found.source.path))}{field}

[tokens]
vocab_size = {shape.vocab_size}  # at most about the root of the bytes of text, and no dearer to predict than the blocks
context = {found.context}  # tokens seen at once

# The largest network that {BUDGET_SECONDS // 60} minutes and this text are enough for:
# about {TOKENS_PER_PARAMETER} tokens for each parameter of its blocks' matrices.
[model]
layers = {shape.layers}
d_model = {shape.width}
heads = {_heads(shape.width)}
activation = "relu2"
norm = "layernorm"
qk_norm = true
ngram_rows = {_ngram_rows(found)}  # hashed bigrams and trigrams: better predictions for no matrix work

[train]
steps = {shape.steps}  # about {minutes} min here, {epochs:.1f} passes over the text (at most {MOST_EPOCHS})
batch_tokens = {shape.batch_tokens}  # about a thousandth of all tokens
{micro}optimizer = "muon"
matrix_lr = 0.02
peak_lr = {rate:.1e}  # for embeddings and gains
final_lr = 0.0
weight_decay = 0.0
{evaluate}"""


def _quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
