"""Good text that the default rules throw away, in texts of other sources than those they were tuned on. These were
looked at, and a few rules were mended by what was seen: good_text_second_set.py has texts that were not.

    python -m bench.quality.good_text_held_out --folder FOLDER

FOLDER holds packages as their indexes publish them, unpacked, for the natural texts that they carry:

    chardet-5.2.0 (source)             blogs' feeds in ten languages, the posts of which are taken        LGPL
    charset-normalizer-3.3.2 (source)  articles of Wikipedia and public-domain texts                      CC BY-SA
    spacy (wheel)                      examples.py: sentences of its contributors in 60 languages         MIT
    hafez-0.4.2 (wheel)                ghazals of Hafez in Persian                                        public domain

None of it is committed. "natural" are these texts as they are: articles, ghazals line by line, and posts that are
running text (worth 80 words and more, of 5 sentences and more, and not cut short with an ellipsis by the feed), each as
unknown, web and books; the share of each genre is given. "forms" are the forms of bench/quality/good_text.py, made of
the sentences of all of these (without markup, programs and addresses) in the languages that have 60 of them. Writes the
row "held out" of bench/results/good_text.json.
"""

from __future__ import annotations

import argparse
import ast
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.quality.good_text import FORMS, GENRES, MOST, RESULTS, cell
from lmforge.corpus.clean.filters import prepare
from lmforge.corpus.clean.scan import scan
from lmforge.corpus.scripts import characters
from lmforge.corpus.sources.decode import encoding_of, text_of
from lmforge.recipe import Corpus

Natural = tuple[str, str, str]  # language, kind, text
WORDS, SENTENCES = 80, 5  # of a post that is running text
PARAGRAPHS = 60  # of a language whose forms are made
NAMES = {"bulgarian": "bg", "russian": "ru", "greek": "el", "hebrew": "he", "hungarian": "hu", "turkish": "tr"}
NAMES |= {"czech": "cs", "polish": "pl", "arabic": "ar", "chinese": "zh", "korean": "ko", "french": "fr"}
NAMES |= {"english": "en", "spanish": "es", "croatian": "hr", "romanian": "ro", "slovak": "sk", "slovene": "sl"}
CODECS = {
    "Big5": "zh",
    "GB2312": "zh",
    "EUC-JP": "ja",
    "SHIFT_JIS": "ja",
    "EUC-KR": "ko",
    "TIS-620": "th",
    "KOI8-R": "ru",
}
_ITEM = re.compile(r"<(?:description|content:encoded|content)\b[^>]*>(.*?)</(?:description|content)", re.DOTALL)
_MARKUP = re.compile(r"[<>{}\[\]$@_=|/\\^*#~━─★●■]|\d.*\d.*\d")  # programs, addresses and rules among the posts
_BREAK, _TAG = re.compile(r"<(?:br|/?p|/?div|/?li|/h\d)\b[^>]*>", re.IGNORECASE), re.compile(r"<[^>]*>")


def posts(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(language, "post", text) of every entry of the feeds."""
    for group in sorted((folder / "tests").iterdir()):
        codec, _, name = group.name.rpartition("-")
        language = NAMES.get(name) or CODECS.get(group.name)
        codec = codec if name in NAMES else group.name
        for path in sorted(group.glob("*.xml")) if language else []:
            try:
                feed = path.read_bytes().decode(codec)
            except (UnicodeDecodeError, LookupError):
                continue
            for item in _ITEM.findall(feed):
                item = item.removeprefix("<![CDATA[").removesuffix("]]>")
                text = html.unescape(_TAG.sub("", _BREAK.sub("\n", html.unescape(item))))
                text = re.sub(r"\s*\n\s*", "\n", text).strip()
                if is_running(text) and language:
                    yield language, "post", text


def articles(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(language, "article", text) of the samples."""
    for path in sorted((folder / "data").glob("sample-*.txt")):
        language = NAMES[path.name.removesuffix(".txt").split("-")[1].split(".")[0]]
        yield language, "article", "".join(text_of(path, encoding_of(path)))


def is_running(text: str) -> bool:
    """Whether a post is running text that the feed did not cut."""
    counts = scan(text)
    cut = text.rstrip("\n ]>").endswith(("...", "…", "[…", "[..."))
    return counts.worth >= WORDS and counts.sentences >= SENTENCES and not cut


def sentences(folder: Path) -> dict[str, list[str]]:
    """{language: sentences} of the examples."""
    examples: dict[str, list[str]] = {}
    for path in sorted(folder.glob("lang/*/examples.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign):
                examples[path.parent.name] = [*map(str, ast.literal_eval(node.value))]
    return examples


def ghazals(folder: Path) -> Iterator[tuple[str, str, str]]:
    """("fa", "verse", text) of each poem."""
    for entry in json.loads((folder / "data" / "hafez.json").read_text("utf-8")):
        yield "fa", "verse", "\n".join(entry["poem"])


def dropped(texts: Iterable[str]) -> dict[str, Any]:
    """Each genre's share of these texts left out, and why."""
    documents, row = list(texts), dict[str, Any]()
    for genre in GENRES:
        reasons: Counter[str] = Counter()
        for number, text in enumerate(documents):
            document = {"id": str(number), "text": text, "source": "s", "genre": genre, "meta": {}}
            reasons.update(filter(None, [prepare(document, Corpus())[1]]))  # type: ignore[arg-type]
        row[genre] = {"dropped": round(reasons.total() / len(documents), 4), "reasons": dict(reasons)}
    return {"documents": len(documents), **row}


def publish(row: str, natural: list[Natural], parts: dict[str, list[str]], note: str) -> None:
    """Judge the texts and the forms that are made of their sentences (and of `parts`), and enter the row."""
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    parts = defaultdict(list, parts)
    for language, kind, text in dict.fromkeys(natural):
        texts[language, kind].append(text)
        pieces = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", text)
        parts[language] += [
            piece.strip() for piece in pieces if 20 <= characters(piece.strip()) <= 400 and not _MARKUP.search(piece)
        ]
    rows = {f"{language} {kind}": dropped(each) for (language, kind), each in sorted(texts.items())}
    cells = {
        language: {form: cell([*dict.fromkeys(each)], language, form) for form in FORMS}
        for language, each in sorted(parts.items()) if len(set(each)) >= PARAGRAPHS and language != "xx"
    }  # fmt: skip
    whole = sum(row["documents"] for row in rows.values())
    figures = {
        "natural": rows,
        "natural_documents": whole,
        "natural_languages": len({language for language, _ in texts}),
        "natural_dropped": {
            genre: round(sum(row[genre]["dropped"] * row["documents"] for row in rows.values()) / whole, 4)
            for genre in GENRES
        },
        "natural_cells_above_5_percent": {
            genre: sum(row[genre]["dropped"] > MOST for row in rows.values()) for genre in GENRES
        },
        "forms": {language: {form: each["dropped"] for form, each in row.items()} for language, row in cells.items()},
        "forms_reasons": {
            language: reasons for language, row in cells.items()
            if (reasons := {form: each for form, each in row.items() if each["dropped"]})
        },
        "forms_cells": sum(map(len, cells.values())),
        "forms_cells_above_5_percent": sum(each["dropped"] > MOST for row in cells.values() for each in row.values()),
    }  # fmt: skip
    RESULTS.add(row, figures, note=note)
    print(json.dumps(figures, ensure_ascii=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    natural = [
        *posts(next(folder.rglob("chardet-5.2.0"))),
        *articles(next(folder.rglob("charset-normalizer-3.3.2"))),
        *ghazals(next(folder.rglob("hafez.json")).parents[1]),
    ]
    looked_at = "these texts were looked at and rules were mended by them; untouched ones: held out, second set"
    publish("held out", natural, sentences(next(folder.rglob("spacy/lang")).parent), looked_at)


if __name__ == "__main__":
    main()
