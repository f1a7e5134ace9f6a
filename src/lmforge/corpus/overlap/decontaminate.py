"""Keep benchmark texts out of the corpus, and measure how well that works.

A benchmark text and a document are compared as their letters alone (see words.py), so line breaks, case, spaces and
punctuation make no difference. Every run of `WINDOW` letters of a benchmark text that starts at a word, about 12 words,
is indexed (letters of English: 25 signs of Chinese say as much); a document that holds any of them is contaminated
(OpenAI 2023, "GPT-4 technical report", appendix C, compares the same runs, but three of each text only). A shorter text
must be found whole: of `SHORT` letters or more anywhere, of `SHORTEST` or more as a line or document by itself.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.corpus.overlap.words import I64, MULTIPLIER, U64, Words, mixed, power, read_words, run_hash
from lmforge.corpus.scripts import characters, pieces
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.files import File, files_of
from lmforge.errors import InputError
from lmforge.recipe import Source

WINDOW = 50  # letters
SHORT = 36  # letters: a text of 8 words, the shortest n-gram of Brown et al. 2020 (GPT-3), appendix C
SHORTEST = 16  # letters: a sentence such as "The mechanical doll wriggled" of a grammar test
LEAST_DISTINCT = 8  # different letters in a window: a run of zeros or of "ha ha" tells nothing
ITEMS = 200  # planted in each way to measure recall
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
_LABEL = re.compile(r"(?=.*[\d_/:])[!-~]*")  # one piece of ASCII that is no word
_FILTER_BITS = 24  # a first look into 2 MB that stay in the processor's cache


class Index(NamedTuple):
    """What must not be in the corpus: hashes of runs of letters, and whose they are."""

    table: U64  # hashes of windows, in an open-addressed table of 2^k places; 0: empty
    filter: NDArray[np.uint64]  # one bit for each value of a window's top `_FILTER_BITS` bits
    owners: NDArray[np.uint16]  # for each place of the table the number of the benchmark
    short: U64  # (2, texts): sorted hashes of short texts' first SHORT letters; of the whole
    lengths: I64  # (texts): their letters
    lines: U64  # sorted hashes of texts that only count as a line by themselves
    names: tuple[str, ...]
    texts: tuple[int, int, int, int]  # windowed, short, lines, too short to tell

    def save(self, path: Path) -> None:
        """Write it, for the tasks to load."""
        np.savez(path, allow_pickle=False, **{name: np.asarray(value) for name, value in self._asdict().items()})

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read what `save` wrote."""
        with np.load(path) as file:
            fields = {name: file[name] for name in cls._fields}
        return cls(**{**fields, "names": tuple(map(str, fields["names"])), "texts": tuple(map(int, fields["texts"]))})


def build_index(benchmarks: Mapping[str, Iterable[str]]) -> Index:
    """Index the texts of some benchmarks, by name."""
    windows: list[U64] = []
    owners: list[NDArray[np.uint16]] = []
    short: set[tuple[int, int, int]] = set()
    lines: set[int] = set()
    texts = [0, 0, 0, 0]
    for number, (_, each) in enumerate(sorted(benchmarks.items())):
        for text in each:
            words = read_words(text)
            size = int(words.amounts[-1])
            texts[0 if size >= WINDOW else 1 if size >= SHORT else 2 if size >= SHORTEST else 3] += 1
            if size >= WINDOW:
                windows.append(_windows(words.prefix, words.starts, words.amounts, _powers()))
                owners.append(np.full(windows[-1].size, number, np.uint16))
            elif size >= SHORT:
                letters = words.prefix.size - 1
                head = run_hash(words.prefix, 0, int(np.searchsorted(words.amounts, SHORT)))
                short.add((int(head), int(run_hash(words.prefix, 0, letters)), letters))
            elif size >= SHORTEST:
                lines.add(int(run_hash(words.prefix, 0, words.prefix.size - 1)))
    hashes = np.concatenate(windows) if windows else np.empty(0, np.uint64)
    table, whose, bits = _fill(
        hashes, np.concatenate(owners) if owners else np.empty(0, np.uint16), _places(hashes.size)
    )
    ordered = sorted(short)
    heads = np.array([[head, whole] for head, whole, _ in ordered], np.uint64).reshape(-1, 2).T.copy()
    lengths = np.array([size for _, _, size in ordered], np.int64)
    counts = (texts[0], texts[1], texts[2], texts[3])
    return Index(
        table, bits, whose, heads, lengths, np.array(sorted(lines), np.uint64), tuple(sorted(benchmarks)), counts
    )


def _places(count: int) -> int:
    return 1 << max(4, (2 * count).bit_length())


@functools.cache
def _powers() -> U64:
    """(WINDOW + 1): the multiplier to the power of 0, 1, …"""
    return np.array([power(exponent) for exponent in range(WINDOW + 1)], np.uint64)


@compiled
def _windows(prefix: Any, starts: Any, amounts: Any, powers: Any) -> Any:
    """The hashes of the runs worth `WINDOW` letters at the starts of words, and of the text's last one."""
    hashes, count, size = np.empty(len(starts) + 1, np.uint64), 0, len(prefix) - 1
    last = np.searchsorted(amounts, amounts[size] - WINDOW + 1) - 1
    letters, end = np.empty(256, np.uint64), 0
    for at in np.append(starts[starts < last], last):
        while amounts[end] - amounts[at] < WINDOW:
            end += 1
        distinct = 0
        for offset in range(at, end):
            letter = prefix[offset + 1] - prefix[offset] * MULTIPLIER
            known = False
            for index in range(distinct):
                known |= letters[index] == letter
            if not known:
                letters[distinct] = letter
                distinct += 1
        if distinct >= LEAST_DISTINCT:
            hashes[count] = mixed(prefix[end] - prefix[at] * powers[end - at]) | np.uint64(1)
            count += 1
    return hashes[:count]


@compiled
def _fill(hashes: Any, owners: Any, places: Any) -> Any:
    table, whose = np.zeros(places, np.uint64), np.zeros(places, np.uint16)
    bits = np.zeros(1 << (_FILTER_BITS - 6), np.uint64)
    for index in range(len(hashes)):
        key = hashes[index]
        place = key & np.uint64(places - 1)
        while table[place] != 0 and table[place] != key:
            place = (place + np.uint64(1)) & np.uint64(places - 1)
        if table[place] == 0:
            table[place], whose[place] = key, owners[index]
        top = key >> np.uint64(64 - _FILTER_BITS)
        bits[top >> np.uint64(6)] |= np.uint64(1) << (top & np.uint64(63))
    return table, whose, bits


def contamination(words: Words, index: Index) -> str | None:
    """The name of the benchmark that a document holds a text of ("short texts" where that is all that is known), or
    None."""
    owner = _owner(*words, _powers(), index.table, index.filter, index.owners, index.short, index.lengths, index.lines)
    return None if owner < 0 else index.names[owner] if owner < len(index.names) else "short texts"


@compiled
def _owner(
    prefix: Any, starts: Any, hashes: Any, ends: Any, amounts: Any, powers: Any, table: Any, bits: Any, owners: Any,
    short: Any, lengths: Any, lines: Any,
) -> Any:  # fmt: skip
    size, places, far, near = len(prefix) - 1, np.uint64(len(table) - 1), 0, 0
    for start in starts:
        while far <= size and amounts[far] - amounts[start] < WINDOW:
            far += 1
        if far <= size:
            key = mixed(prefix[far] - prefix[start] * powers[far - start]) | np.uint64(1)
            top = key >> np.uint64(64 - _FILTER_BITS)
            if bits[top >> np.uint64(6)] >> (top & np.uint64(63)) & np.uint64(1):
                place = key & places
                while table[place] != 0:
                    if table[place] == key:
                        return np.int64(owners[place])
                    place = (place + np.uint64(1)) & places
        if len(lengths):
            while near <= size and amounts[near] - amounts[start] < SHORT:
                near += 1
            if near <= size and _is_short(prefix, start, near, powers, short, lengths):
                return np.int64(1 << 20)
    if len(lines):
        if SHORTEST <= amounts[size] < SHORT and _in(lines, run_hash(prefix, 0, size)):
            return np.int64(1 << 20)
        start = 0
        for end in ends:
            if SHORTEST <= amounts[end] - amounts[start] < SHORT and _in(lines, run_hash(prefix, start, end)):
                return np.int64(1 << 20)
            start = end
    return np.int64(-1)


@compiled
def _is_short(prefix: Any, start: Any, near: Any, powers: Any, short: Any, lengths: Any) -> Any:
    """Whether one of the short texts begins at a letter; `near`: where its first `SHORT` letters end."""
    key = mixed(prefix[near] - prefix[start] * powers[near - start]) | np.uint64(1)
    at = np.searchsorted(short[0], key)
    while at < len(lengths) and short[0, at] == key:
        stop = start + lengths[at]
        if stop < len(prefix) and short[1, at] == run_hash(prefix, start, stop):
            return True
        at += 1
    return False


@compiled
def _in(ordered: Any, key: Any) -> Any:
    at = np.searchsorted(ordered, key)
    return at < len(ordered) and ordered[at] == key


# The benchmarks' files


def benchmark_files(paths: Sequence[Path]) -> list[File]:
    """The files that `corpus.decontaminate` names: files, folders (searched for .jsonl and .txt files), patterns.

    Raises:
        InputError: a path does not exist or holds no such file.
    """
    return [file for path in paths for file in files_of(Source(kind="jsonl", path=path), SUFFIXES, Counter())]


def read_benchmarks(paths: Sequence[Path]) -> dict[str, list[str]]:
    """The texts in the files that `corpus.decontaminate` names, by the file's name.

    A line of JSON gives all strings in it that are no labels, each by itself, and the record's strings one after
    another (so that a question with its answers is found though each is short); only the longest string and the record
    count as short texts. A .txt file is one text.

    Raises:
        InputError: a file is not there, cannot be read, or a line is not JSON.
    """
    return {file.name: list(_texts(file.path)) for file in benchmark_files(paths)}


def _texts(path: Path) -> Iterable[str]:
    if path.suffix == ".txt":
        yield b"\n".join(line for _, line in lines_of(path)).decode("utf-8", "replace")
        return
    for number, line in lines_of(path):
        if line.strip():
            try:
                leaves = list(_leaves(orjson.loads(line)))
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON ({error}); correct or remove this line") from error
            longest = max(leaves, key=len, default="")
            yield longest
            yield from (leaf for leaf in leaves if leaf is not longest and characters(leaf) >= WINDOW)
            if len(leaves) > 1:
                yield " ".join(leaves)


def _leaves(value: Any) -> Iterable[str]:
    """The strings in a value, without labels ("subject_verb_agreement_1", "HumanEval/3"): they name an item, and many
    texts may hold them."""
    if isinstance(value, str):
        if not _LABEL.fullmatch(value.strip()):
            yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


# How well it works


def measure_recall(benchmarks: Mapping[str, Iterable[str]], index: Index, carriers: Sequence[str]) -> dict[str, Any]:
    """Plant benchmark texts in every way of `PLANTED` and count how many are found, and how often a text of the same
    words in another order, planted alike, is taken for one.

    Returns {kind: {items, found, recall, precision, definition}}; the embedded ones lie within `carriers`, texts of the
    corpus.
    """
    texts = (text for each in benchmarks.values() for text in each if characters(text) >= SHORT)
    chosen = heapq.nsmallest(
        2 * ITEMS,
        {hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(): text for text in texts}.items(),
    )
    items = [text for _, text in chosen if read_words(text).amounts[-1] >= SHORT][:ITEMS]
    rng = random.Random(0)
    result: dict[str, Any] = {}
    for kind, (plant, definition) in PLANTED.items():
        hits = wrong = 0
        for number, item in enumerate(items):
            carrier = carriers[number % len(carriers)] if carriers else ""
            words, between = pieces(item)
            rng.shuffle(words)
            hits += contamination(read_words(plant(item, carrier, rng)), index) is not None
            wrong += contamination(read_words(plant(between.join(words), carrier, rng)), index) is not None
        result[kind] = {
            "items": len(items),
            "found": hits,
            "recall": hits / len(items) if items else None,
            "precision": hits / (hits + wrong) if hits + wrong else None,
            "definition": definition,
        }
    return result


def _rewrapped(text: str, carrier: str, rng: random.Random) -> str:
    words, between = pieces(text)
    return "\n".join(between.join(words[at : at + 8]) for at in range(0, len(words), 8))


def _repunctuated(text: str, carrier: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return text.translate(str.maketrans("", "", string.punctuation))
    words, between = pieces(text)
    return between.join(
        word.rstrip(string.punctuation) + rng.choice(("", "", ",", ";", " -", "!", "...")) for word in words
    )


def _embedded(text: str, carrier: str, rng: random.Random) -> str:
    words, between = pieces(carrier)
    at = rng.randrange(len(words) + 1)
    return between.join([*words[:at], text, *words[at:]])


PLANTED: dict[str, tuple[Callable[[str, str, random.Random], str], str]] = {
    "verbatim": (lambda text, carrier, rng: text, "the text itself"),
    "rewrapped": (_rewrapped, "in lines of eight words"),
    "recased": (
        lambda text, carrier, rng: text.upper() if rng.random() < 0.5 else text.lower(),
        "in capitals, or in small letters",
    ),
    "repunctuated": (_repunctuated, "all punctuation removed, or other marks set after words"),
    "embedded": (_embedded, "within a document of the corpus, at any place"),
}
