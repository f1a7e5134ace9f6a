"""The corpus figures checked on labelled and known data: entropy, topics, genres, entities, dates.

    python -m bench.quality.measure ../shared/data                 writes bench/results/measure.json
    python -m bench.quality.measure ../shared/data --names FILE    also scores the recogniser on an IOB2 file (PER, LOC,
    ORG), as UNER English-EWT's
    python -m bench.quality.measure ../shared/data --run RUN       also times the analysis of a run's corpus
    python -m bench.quality.measure ../shared/data --only speed    does that part again and keeps the others' results

Entropy: i.i.d. and Markov sources whose entropy is known. Topics: Reuters-21578 documents of one of the ten commonest
topics, NMF (and LDA beside it) without seeing the labels. Genres: folders of the training texts as labels, held-out
documents. Entities: SQuAD questions that begin with who, where or when give the type of their answer. Intervals:
Wilson's for shares, bootstrap over documents for NMI and F1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import normalized_mutual_info_score

from bench.harness import Results
from lmforge.corpus.measure.analyse import analyse
from lmforge.corpus.measure.conditional import of_bytes, of_words
from lmforge.corpus.measure.counts import Statistics
from lmforge.corpus.measure.entities import Recogniser
from lmforge.corpus.measure.entropy import chao_shen, grassberger, miller_madow, plug_in
from lmforge.corpus.measure.genres import genre_figures
from lmforge.corpus.measure.sampling import PIECE, SampledPiece
from lmforge.corpus.measure.topics import ITERATIONS, TOKEN, WORDS, coherence, find_topics
from lmforge.errors import LmforgeError
from lmforge.intervals import bootstrap_ratio, wilson
from lmforge.progress import log
from lmforge.recipe import Recipe

RESULTS = Results("measure", packages=("numpy", "scikit-learn"))
GENRES = {
    "books": "books",
    "stories": "stories",
    "encyclopedia": "encyclopedia",
    "news": "news",
    "web": "web",
    "technical_docs": "technical",
    "code": "code",
}
MOST_OF_A_FILE = 700  # pieces, so that no collection is a genre by itself
HELD_OUT = 0.25
QUESTIONS = {
    "person": r"who\b(?!se)",
    "place": r"where\b|in (?:what|which) (?:city|country|state|town)\b",
    "date": r"when\b|(?:in )?(?:what|which) year\b",
}
RESAMPLES = 200


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def entropy_checks() -> list[dict[str, Any]]:
    """Each estimator on sources of known entropy, 200,000 symbols to learn from and 40,000 to score."""
    rng = np.random.default_rng(0)
    found = []

    def check(source: str, estimator: str, value: float, truth: float) -> None:
        found.append(
            {"source": source, "estimator": estimator, "value": value, "truth": truth, "error": value / truth - 1}
        )

    for symbols in (256, 10_000):
        share = 1 / np.arange(1, symbols + 1)
        share /= share.sum()
        truth = float(-(share * np.log2(share)).sum())
        drawn = rng.choice(symbols, 240_000, p=share)
        counts = np.bincount(drawn)
        for estimate in (plug_in, miller_madow, grassberger, chao_shen):
            check(f"i.i.d. Zipf, {symbols:,} symbols", estimate.__name__, estimate(counts), truth)
        if symbols == 256:
            data = drawn.astype(np.uint8).tobytes()
            check(
                "i.i.d. Zipf, 256 symbols",
                "bytes, order 1",
                of_bytes([data[:200_000]], [data[200_000:]], 1).bits[0],
                truth,
            )
    for states, memory in ((20, 1), (6, 2), (4, 3)):
        chain, truth = markov(states, memory, 240_000, rng)
        source, order = f"Markov, {states} states, memory {memory}", memory + 1
        text = [" ".join(map(str, part)) for part in (chain[:200_000], chain[200_000:])]
        check(source, f"words, order {order}", of_words(text[:1], text[1:], order).bits[-1], truth)
        data = (chain + 65).astype(np.uint8).tobytes()
        check(source, f"bytes, order {order}", of_bytes([data[:200_000]], [data[200_000:]], order).bits[-1], truth)
    return found


def markov(states: int, memory: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A chain on its last `memory` states, and its entropy rate by how often each history occurs."""
    share = rng.dirichlet(np.full(states, 0.5), states**memory)
    steps, uniform = np.cumsum(share, axis=1), rng.random(length)
    chain, history, seen = np.empty(length, np.int64), 0, np.zeros(states**memory)
    for place in range(length):
        seen[history] += 1
        chain[place] = min(int(np.searchsorted(steps[history], uniform[place])), states - 1)
        history = (history * states + int(chain[place])) % states**memory
    terms = np.where(share > 0, -share * np.log2(np.maximum(share, 1e-300)), 0.0).sum(axis=1)
    return chain, float(terms @ seen / length)


def topic_checks(data: Path) -> dict[str, Any]:
    """Topics found without labels against Reuters' own."""
    single = [row for row in rows(data / "pretrain/news/reuters21578.jsonl.gz") if len(row["topics"]) == 1]
    common = {topic for topic, _ in Counter(row["topics"][0] for row in single).most_common(10)}
    kept = [row for row in single if row["topics"][0] in common]
    labels, texts = [row["topics"][0] for row in kept], [row["text"] for row in kept]
    found: dict[str, Any] = {"documents": len(kept), "labels": dict(Counter(labels).most_common())}
    for topics in (10, 20):
        started = time.perf_counter()
        nmf = find_topics(texts, topics)
        assert nmf is not None
        found[f"nmf_{topics}"] = {
            "npmi": float(nmf.npmi.mean()),
            "seconds": time.perf_counter() - started,
            **agreement(labels, nmf.of_text),
        }
    started = time.perf_counter()
    vectorizer = CountVectorizer(max_df=0.4, min_df=3, max_features=WORDS, token_pattern=TOKEN, stop_words="english")
    counts = vectorizer.fit_transform(texts)
    lda = LatentDirichletAllocation(10, random_state=0, max_iter=15, learning_method="batch")
    told = lda.fit_transform(counts).argmax(axis=1)
    top = [np.argsort(-row)[:10] for row in lda.components_]
    npmi = float(np.mean([coherence(counts[:, words].toarray() > 0)[0] for words in top]))
    found["lda_10"] = {"npmi": npmi, "seconds": time.perf_counter() - started, **agreement(labels, told)}
    found["settings"] = {"nmf_iterations": ITERATIONS, "lda_iterations": 15}
    return found


def agreement(labels: Sequence[str], told: np.ndarray) -> dict[str, Any]:
    """NMI (bootstrap interval) and two accuracies (Wilson): each topic given one label of its own, and each topic its
    commonest label."""
    names = sorted(set(labels))
    true = np.array([names.index(label) for label in labels])
    table = np.zeros((len(names), int(told.max()) + 1), np.int64)
    np.add.at(table, (true, told), 1)
    one_to_one = int(table[linear_sum_assignment(-table)].sum())
    commonest = int(table.max(axis=0).sum())
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(true), len(true)) for _ in range(RESAMPLES))
    low, high = np.percentile([normalized_mutual_info_score(true[draw], told[draw]) for draw in drawn], [2.5, 97.5])
    return {
        "nmi": {"value": float(normalized_mutual_info_score(true, told)), "low": float(low), "high": float(high)},
        "one_to_one": share(one_to_one, len(true)), "commonest_label": share(commonest, len(true)),
    }  # fmt: skip


def share(right: int, items: int) -> dict[str, Any]:
    low, high = wilson(right, items)
    return {"value": right / items if items else None, "low": low, "high": high, "items": items}


def pieces(data: Path) -> tuple[list[SampledPiece], list[SampledPiece]]:
    """(training, held-out) pieces of the training texts, split by document; a document's genre is its folder."""
    parts: tuple[list[SampledPiece], list[SampledPiece]] = ([], [])
    for folder, genre in GENRES.items():
        for path in sorted((data / "pretrain" / folder).glob("*.jsonl.gz")):
            found: tuple[list[SampledPiece], list[SampledPiece]] = ([], [])
            for number, row in enumerate(rows(path)):
                text = row.get("text") or ""
                held_out = sha256(f"{path.name} {number}".encode()).digest()[0] < 256 * HELD_OUT
                starts = [cut for cut in range(0, max(1, len(text)), PIECE) if len(text) - cut >= 200 or not cut]
                found[held_out].extend(
                    SampledPiece(f"{path.name} {number}", genre, text[cut : cut + PIECE]) for cut in starts
                )
            for part, pieces_found in zip(parts, found, strict=True):
                pieces_found.sort(key=lambda piece: sha256(piece.text.encode()).digest())
                part += pieces_found[:MOST_OF_A_FILE]
    for part in parts:
        part.sort(key=lambda piece: sha256(piece.text.encode()).digest())
    return parts


def question_checks(data: Path) -> dict[str, Any]:
    """Answers to SQuAD's who, where and when: found as a mention (of any type), and of what type where found."""
    articles = list(rows(data / "benchmarks/squad/dev_v1.1_articles.jsonl.gz"))
    contexts = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    background = [row["text"] for row in rows(data / "pretrain/encyclopedia/wikipedia_squad_train_articles.jsonl.gz")][
        :60
    ]
    recogniser = Recogniser.learn([*contexts, *background])
    found = {kind: Counter[str]() for kind in QUESTIONS}
    for article in articles:
        for paragraph in article["paragraphs"]:
            mentions = recogniser.mentions(paragraph["context"])
            for question in paragraph["qas"]:
                asked = next(
                    (
                        kind
                        for kind, words in QUESTIONS.items()
                        if re.match(words, question["question"].strip(), re.IGNORECASE)
                    ),
                    None,
                )
                answer = question["answers"][0]
                if asked is None or not (
                    any(map(str.isupper, answer["text"])) or any(map(str.isdigit, answer["text"]))
                ):
                    continue  # "the people" is no name
                start, stop = answer["answer_start"], answer["answer_start"] + len(answer["text"])
                over = [mention for mention in mentions if mention.start < stop and mention.stop > start]
                found[asked]["asked"] += 1
                found[asked]["found"] += bool(over)
                found[asked][f"as {over[0].type}" if over else "missed"] += 1
    result: dict[str, Any] = {"learned_from_bytes": sum(len(text.encode()) for text in (*contexts, *background))}
    for kind, counts in found.items():
        result[kind] = {
            "found": share(counts["found"], counts["asked"]),
            "type_right_where_found": share(counts[f"as {kind}"], counts["found"]),
            "types": {name: counts[f"as {name}"] for name in ("person", "place", "organisation", "date")},
        }
    return result


def iob2(path: Path) -> list[tuple[str, set[tuple[int, int, str]]]]:
    """(text, {(start, stop, label)}) of each document of an IOB2 file with `# newdoc` and `# text = ` lines."""
    documents: list[tuple[str, set[tuple[int, int, str]]]] = []
    sentence, tokens = "", list[tuple[str, str]]()
    for line in [*path.read_text("utf-8").splitlines(), ""]:
        if line.startswith("# newdoc") or not documents:
            documents.append(("", set()))
        if line.startswith("# text = "):
            sentence = line.removeprefix("# text = ")
        elif line[:1].isdigit():
            _, word, label, *_ = line.split("\t")
            tokens.append((word, label))
        elif not line and tokens:
            text, spans = documents[-1]
            place, last = 0, None
            for word, label in tokens:
                start = max(place, sentence.find(word, place))
                place = start + len(word)
                if label.startswith("I-") and last is not None:
                    spans.discard(last)
                    last = (last[0], len(text) + place, last[2])
                else:
                    last = (len(text) + start, len(text) + place, label[2:]) if label.startswith("B-") else None
                if last is not None:
                    spans.add(last)
            documents[-1] = (text + sentence + "\n", spans)
            tokens = []
    return documents


def name_checks(path: Path, data: Path) -> dict[str, Any]:
    """Exact spans and types against gold ones: precision, recall, F1; intervals by bootstrap over documents."""
    documents = iob2(path)
    background = [row["text"] for row in rows(data / "pretrain/web/ewt_web_text.jsonl.gz")]
    background += [row["text"] for row in rows(data / "pretrain/encyclopedia/wikipedia_squad_train_articles.jsonl.gz")][
        :80
    ]
    recogniser = Recogniser.learn([*(text for text, _ in documents), *background])
    kinds = {"PER": "person", "LOC": "place", "ORG": "organisation"}
    counts = np.zeros((len(documents), len(kinds) + 1, 3), np.int64)  # right, told, true; the last kind: all together
    same_span = right_type = 0
    for number, (text, spans) in enumerate(documents):
        true = {(start, stop): kinds[label] for start, stop, label in spans if label in kinds}
        told = {
            (mention.start, mention.stop): mention.type
            for mention in recogniser.mentions(text)
            if mention.type != "date"
        }
        same_span += len(true.keys() & told.keys())
        right_type += len(true.items() & told.items())
        for column, kind in enumerate(kinds.values()):
            counts[number, column] = [
                sum(value == kind for _, value in some)
                for some in (true.items() & told.items(), told.items(), true.items())
            ]
        counts[number, -1] = counts[number, :-1].sum(axis=0)
    result: dict[str, Any] = {"documents": len(documents), "type_right_where_span_right": share(right_type, same_span)}
    for column, kind in enumerate((*kinds.values(), "all")):
        right, told_count, true_count = counts[:, column].T
        interval = bootstrap_ratio(2 * right, told_count + true_count, 0) or (None, None)
        result[kind] = {
            "precision": share(int(right.sum()), int(told_count.sum())),
            "recall": share(int(right.sum()), int(true_count.sum())),
            "f1": {
                "value": float(2 * right.sum() / (told_count + true_count).sum()),
                "low": interval[0],
                "high": interval[1],
            },
        }
    return result


def speed(texts: Sequence[str]) -> dict[str, Any]:
    """What `Statistics.add` costs per megabyte, the median of 5; beside it the floor, splitting and counting words
    alone."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    digests = [sha256(text.encode()).digest() for text in texts]

    def add() -> None:
        statistics = Statistics()
        for text, digest in zip(texts, digests, strict=True):
            statistics.add({"id": "x", "text": text, "source": "s", "genre": "web", "meta": {}}, digest)

    def floor() -> None:
        counts = Counter[str]()
        for text in texts:
            counts.update(text.split())

    took: dict[str, list[float]] = {"add": [], "floor": []}
    work: list[tuple[str, Callable[[], None]]] = [("add", add), ("floor", floor)]
    for _ in range(5):
        for name, run in work:
            started = time.perf_counter()
            run()
            took[name].append((time.perf_counter() - started) / size)
    milliseconds = {name: 1e3 * float(np.median(times)) for name, times in took.items()}
    return {
        "megabytes": size,
        "milliseconds_per_megabyte": milliseconds,
        "ratio_to_floor": milliseconds["add"] / milliseconds["floor"],
    }


def analysis_time(run: Path) -> dict[str, Any]:
    """Seconds that the analysis adds to a corpus stage: three times in one process, the first with the libraries'
    imports."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        found = analyse(run / "corpus", Recipe(name="bench"))
        took.append(time.perf_counter() - started)
    return {"seconds": took, "sample": found["sample"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", nargs="*", default=None)
    arguments = parser.parse_args()
    data = arguments.data
    train, held_out = pieces(data)
    for name, check in {
        "speed": lambda: speed([piece.text for piece in train if piece.genre != "code"][:1500]),
        "entropy": entropy_checks,
        "topics": lambda: topic_checks(data),
        "genres": lambda: genre_figures(train, held_out),
        "questions": lambda: question_checks(data),
        **(
            {"names": lambda: {"file": arguments.names.name, **name_checks(arguments.names, data)}}
            if arguments.names
            else {}
        ),
        **({"analysis": lambda: analysis_time(arguments.run)} if arguments.run else {}),
    }.items():
        if arguments.only and name not in arguments.only:
            continue
        started = time.perf_counter()
        RESULTS.publish({name: check()})
        log(f"{name}: {time.perf_counter() - started:.1f} s")
    errors = [row for row in RESULTS.figures().get("entropy", []) if row["estimator"] not in ("plug_in", "chao_shen")]
    if errors:
        RESULTS.publish({"largest_entropy_error_of_chosen": max(abs(row["error"]) for row in errors)})


if __name__ == "__main__":
    try:
        main()
    except LmforgeError as error:
        log(f"error: {error}")
        sys.exit(error.exit_code)
