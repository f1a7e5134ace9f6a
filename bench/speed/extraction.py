"""Main content of web pages: ours against trafilatura, on pages with the text that should come out.

    python -m bench.speed.extraction PAGES.jsonl.gz --peer .peers/venv/bin/python --peer .peers/trafilatura/bin/python

PAGES holds one object a line: html, expected_text. Each peer is a Python that has trafilatura installed; it runs as a
process of its own that is handed the pages once and then times itself, so that no transport is in its figure. Rounds
alternate: ours, peer, ours, peer. Quality is token F1 (words in lower case, as multisets), the mean over pages.
Trafilatura is asked twice: with its defaults, and as datatrove asks it (favor_precision, no comments, deduplicate). The
floor is the parsing alone, which both must do.

Our list of skipped class names was chosen while looking at these pages; `ours_without_skipping` is the same extraction
without it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from bench.harness import Results
from lmforge.corpus.sources.web import page_text
from lmforge.progress import log

RESULTS = Results("extraction", packages=("resiliparse",))
PEER = r"""
import importlib, json, sys, time
import trafilatura
def forget():  # deduplicate remembers what it saw in earlier rounds
    for name in ("trafilatura.deduplication", "trafilatura.filters"):
        try:
            importlib.import_module(name).LRU_TEST.clear()
        except (ImportError, AttributeError):
            continue
ways = {"defaults": {}, "as_datatrove": dict(favor_precision=True, include_comments=False, deduplicate=True)}
pages = json.loads(sys.stdin.readline())
print(json.dumps(trafilatura.__version__), flush=True)
for line in sys.stdin:
    way = ways[json.loads(line)]
    forget()
    started = time.perf_counter()
    texts = [trafilatura.extract(page, **way) or "" for page in pages]
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, texts]), flush=True)
"""


class Peer:
    """Trafilatura in the environment of another Python."""

    def __init__(self, python: str, pages: list[str]) -> None:
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = str(self._ask(pages))

    def extract(self, way: str) -> tuple[float, list[str]]:
        seconds, texts = self._ask(way)
        return seconds, texts

    def _ask(self, question: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def timed(pages: list[str], extract: Callable[[str], str]) -> tuple[float, list[str]]:
    started = time.perf_counter()
    texts = [extract(page) for page in pages]
    return time.perf_counter() - started, texts


def token_f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words, as multisets; 1 where both are empty."""
    one, other = (Counter(re.findall(r"\w+", text.lower())) for text in (found, expected))
    same = sum((one & other).values())
    return 2 * same / (one.total() + other.total()) if one or other else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with gzip.open(arguments.pages, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pages, expected = [row["html"] for row in rows], [row["expected_text"] for row in rows]
    ways: dict[str, Callable[[], tuple[float, list[str]]]] = {
        "ours": lambda: timed(pages, lambda page: page_text(page)[0]),
        "ours_without_skipping": lambda: timed(
            pages, lambda page: extract_plain_text(page, main_content=True, alt_texts=False)
        ),
        "parsing_alone": lambda: timed(pages, lambda page: str(bool(HTMLTree.parse(page)))),
    }
    for python in arguments.peer:
        peer = Peer(python, pages)
        for way in ("defaults", "as_datatrove"):
            ways[f"trafilatura_{peer.version}_{way}"] = lambda peer=peer, way=way: peer.extract(way)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, float] = {}
    for number in range(arguments.rounds + 1):  # the first warms up
        for name, run in ways.items():
            spent, texts = run()
            scores[name] = statistics.fmean(map(token_f1, texts, expected))
            if number:
                seconds[name].append(spent)
        log(f"round {number} of {arguments.rounds}")
    size = sum(len(page.encode()) for page in pages)
    table = {
        name: {
            "token_f1": round(scores[name], 4),
            "seconds": round(statistics.median(seconds[name]), 4),
            "pages_per_second": round(len(pages) / statistics.median(seconds[name]), 1),
            "megabytes_per_second": round(size / statistics.median(seconds[name]) / 1e6, 2),
            "rounds": [round(s, 4) for s in seconds[name]],
        }
        for name in ways
    }
    del table["parsing_alone"]["token_f1"]
    ours = table["ours"]
    against = {
        name: {
            "speed": round(row["seconds"] / ours["seconds"], 2),
            "token_f1_difference": round(ours["token_f1"] - row["token_f1"], 4),
        }
        for name, row in table.items()
        if name.startswith("trafilatura")
    }
    result = {
        "against": against, "time_over_parsing_alone": round(ours["seconds"] / table["parsing_alone"]["seconds"], 2),
        "pages": len(pages), "bytes": size, "ways": table,
    }  # fmt: skip
    RESULTS.publish({"run": result})


if __name__ == "__main__":
    main()
